"""Loads what the block tests have saved, in a process that has no layerprune; prints one JSON object."""

import json
import sys
from pathlib import Path

import torch

from torchvision_ops import declare_missing_ops


def main(root: Path) -> None:
    declare_missing_ops()
    import transformers  # only now: it may want torchvision

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(json.dumps({folder.name: checked(folder) for folder in sorted(root.iterdir())}))


def checked(folder: Path) -> dict[str, object]:
    import transformers

    expected = torch.load(folder / "expected.pt")
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    model.eval()
    with torch.no_grad():
        found = [t for t in model(**expected["inputs"]).to_tuple() if torch.is_tensor(t)]
    apart = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected["outputs"], strict=True)]
    tokens = [generated(model, expected["inputs"], cached) for cached in (True, False)] if expected["tokens"] else []
    return {
        "layerprune": "layerprune" in sys.modules,
        "wrong_keys": {key: sorted(map(str, value)) for key, value in info.items() if value},
        "num_params": sum(p.numel() for p in model.parameters()),
        "apart": max(apart),
        "tokens": tokens,
        "config": json.loads(config.to_json_string(use_diff=False)),
    }


def generated(model, inputs: dict[str, torch.Tensor], cached: bool) -> list[list[int]]:
    """Greedy continuation, long enough to leave every sliding window."""
    start = {key: value for key, value in inputs.items() if not key.startswith("decoder_")}
    more = model.generate(**start, use_cache=cached, do_sample=False, min_new_tokens=8, max_new_tokens=8)
    return more.tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
