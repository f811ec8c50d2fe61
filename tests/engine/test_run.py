"""What a run is made on."""

import pytest
import torch

from engine.run import find_device


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_computes_attention_by_kernels_that_train(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        assert find_device(name) == torch.device("cuda")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_gpu_that_is_not_there_is_missed_in_words() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="torch sees no CUDA GPU here"):
        find_device("cuda")
