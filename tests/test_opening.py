from pathlib import Path

import pytest
import torch

from idgen import mini
from idgen.errors import ConfigError, ModelNotFoundError
from idgen.opening import choose_device, model_folder


def test_auto_is_a_device_that_computes() -> None:
    device = choose_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["toaster", "cpu:1", "cuda:x", "mps:0", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must be auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="this machine, or this build of torch, has none"):
        choose_device("cuda:99")


def test_a_folder_is_a_model_if_it_has_an_index(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no folder in the layout of diffusers"):
        model_folder(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    assert model_folder(str(tmp_path)) == tmp_path


def test_mini_is_the_embedded_model() -> None:
    assert model_folder("mini") == mini.BASE
