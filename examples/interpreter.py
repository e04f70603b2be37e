"""Run a bundle of digits-unet from its files alone: NumPy, ONNX Runtime and docs/formats.md, nothing else.

    python examples/interpreter.py BUNDLE 7        writes seven.npy: one image of class 7

The result equals that of ``dipgo-deploy generate`` bit for bit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from safetensors.numpy import load_file


def interpret(folder: Path, seeds: list[int], labels: list[int], scale: float = 1.0) -> np.ndarray:
    """Images (B, 1, 16, 16), float32, for one seed and one class per image; ``scale`` is the guidance scale."""
    program = json.loads((folder / "program.json").read_text())
    manifest = json.loads((folder / "bundle.json").read_text())
    guided = program["contract"]["guidance"] == "concat"
    sizes = {"batch": len(seeds), "rows": len(seeds) * (2 if guided else 1)}
    slots = {s["name"]: np.zeros([sizes.get(d, d) for d in s["shape"]], s["dtype"]) for s in program["slots"]}

    shape = program["contract"]["latent_shape"]
    slots[program["noise"]][:] = [np.random.default_rng(s).standard_normal(shape, dtype=np.float32) for s in seeds]
    table = load_file(folder / "class_embedder/diffusion_pytorch_model.safetensors")["embedding.weight"]
    rows = [len(table) - 1] * len(labels) * guided + labels  # the last row of the table means "no class"
    slots[dict(program["conditioning"])["encoder_hidden_states"]][:] = table[rows].reshape(len(rows), 4, 32)

    options = ort.SessionOptions()
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(folder / manifest["denoiser"]))
    graphs = {n: ort.InferenceSession((folder / p).read_bytes(), options) for n, p in manifest["graphs"].items()}
    for call in program["calls"]:
        if call["op"] == "run":
            inputs = {name: slots[slot] for name, slot in call["inputs"]}
            inputs["timestep"] = np.full(sizes["rows"], call["timestep"], np.float32)
            taken = {entry.name for entry in graphs[call["graph"]].get_inputs()}
            names, targets = zip(*call["outputs"], strict=True)
            results = graphs[call["graph"]].run(names, {name: inputs[name] for name in taken})
            for slot, value in zip(targets, results, strict=True):
                slots[slot][:] = value
        elif call["op"] == "combine":
            total = sum_of(call["terms"], slots, scale)
            slots[call["target"]][:] = np.concatenate([total] * call["copies"])
        else:
            raise NotImplementedError("op sample needs the diffusers scheduler of the contract")
    return slots[program["image"]]


def sum_of(terms: list[dict], slots: dict[str, np.ndarray], scale: float) -> np.ndarray:
    """The weighted sum of a combination, term by term in float32."""
    total = np.zeros((), np.float32)
    for term in terms:
        slot = slots[term["slot"]]
        middle = len(slot) // 2
        rows = {"all": slice(None), "first": slice(middle), "second": slice(middle, None)}[term["half"]]
        weight = np.float32(term["constant"] + term["guided"] * scale)  # in float64, then rounded once
        product = weight * slot[rows, : term["channels"]].astype(np.float32)
        total = total + product
    return total


if __name__ == "__main__":
    np.save("seven.npy", interpret(Path(sys.argv[1]), [0], [int(sys.argv[2])]))
