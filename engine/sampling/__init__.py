"""How training and evaluation images are drawn: time grid, transition kernels, solvers, window, and the loop."""
