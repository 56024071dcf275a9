"""Where the embedded model lies; no logic."""

from pathlib import Path

ROOT = Path(__file__).parent
FACES = ROOT / "faces"  # det_mini.onnx and rec_mini.onnx: a folder that insightface's FaceAnalysis opens
JUDGE = ROOT / "judge" / "judge.onnx"  # the second eye, outside of FACES: insightface must find one there
PEOPLE = ROOT / "faces" / "people.safetensors"  # the distribution that new people are drawn from
BASE = ROOT / "base"  # a Stable Diffusion checkpoint in the ordinary diffusers layout
ADAPTER = ROOT / "adapter" / "faceid_mini.safetensors"  # with its JSON beside it
WPLUS = ROOT / "wplus" / "wplus_mini.safetensors"  # faces as codes that can be edited
DIRECTIONS = ROOT / "wplus" / "directions.safetensors"  # along which to edit them
WPLUS_ADAPTER = ROOT / "wplus" / "adapter" / "wplus_adapter_mini.safetensors"  # with its JSON beside it
DECODER = ROOT / "decoder" / "decoder.safetensors"  # small, for identity terms: train/decoder.py
