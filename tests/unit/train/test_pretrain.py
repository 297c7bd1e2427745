import torch
from safetensors.torch import load_file

from metalora.train import pretrain


def test_damaged_weights_in_the_cache_are_trained_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrain, "_pretrain", lambda name, images, labels: {"weight": torch.arange(100.0)})
    said = []
    file = pretrain.embedded_weights("resnet20", said.append)
    whole = file.read_bytes()
    assert pretrain.embedded_weights("resnet20", said.append) == file
    assert len(said) == 1
    for damaged in (whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], whole[:100], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        again = pretrain.embedded_weights("resnet20", said.append)
        assert load_file(again)["weight"].tolist() == list(range(100))
    assert len(said) == 4
