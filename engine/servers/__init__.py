"""Servers that score images: which may be asked, how, and what their answers mean (torch-free).

`allowed` holds the operator's lists, `connection` asks, `scores` speaks Palate's own protocol
(docs/guides/reward-servers.md), `judging` that of chat completions, whose answers `verdicts` reads; `check` tries a
server before a run begins.
"""
