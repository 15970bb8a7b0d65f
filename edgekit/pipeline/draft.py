"""A first recipe, from what a model shows of itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.compress.channels.groups import find_groups
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.models.simplify import clean
from edgekit.pipeline.origin import Opened, Origin
from edgekit.targets import detect_machine
from edgekit.values import Preprocessing, TensorSpec, preprocessing_to_json

_PICTURE_CHANNELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user said already; what is empty gets a place to fill in."""

    calibration: str = ""
    evaluation: str = ""
    targets: tuple[str, ...] = ()


def draft_recipe(opened: Opened, origin: Origin, wishes: Wishes) -> str:
    """The text of an `edgekit.toml` for the model: what it shows is filled in, the rest said.

    A step that the model does not allow is a comment that says why.
    """
    model = clean(opened.model)
    parts = [
        _head(model),
        _model_table(origin),
        _data_tables(model, wishes),
        _evaluate_table(model),
        _compress_tables(model),
        _rest(wishes),
    ]
    return "\n".join(parts)


def _head(model: Model) -> str:
    lines = [f"# {model.name}: opset {model.opset}, {model.graph.num_nodes()} nodes"]
    lines += [f"#   input  {spec}" for spec in model.inputs]
    lines += [f"#   output {spec}" for spec in model.outputs]
    return "\n".join(lines) + "\n"


def _model_table(origin: Origin) -> str:
    lines = ["[model]"]
    lines.append(f"{'factory' if origin.is_factory else 'path'} = {_text(origin.place)}")
    if origin.weights:
        lines.append(f"weights = {_text(origin.weights)}")
    if origin.plan:
        lines.append(f"plan = {_text(origin.plan)}")
    if origin.inputs:
        lines.append("[model.inputs]")
        lines += [f"{_key(name)} = {list(shape)}" for name, shape in origin.inputs.items()]
    return "\n".join(lines) + "\n"


def _data_tables(model: Model, wishes: Wishes) -> str:
    names = ", ".join(f'"{spec.name}"' for spec in model.inputs)
    calibration = _text(wishes.calibration or "calibration")
    evaluation = _text(wishes.evaluation or "evaluation")
    lines = [
        "# Samples: a folder of pictures (one folder a class), a .csv of path and label, an .npz",
        f"# with an array for each input ({names}) and labels, or package.module:function.",
        "[data]",
        f"calibration = {calibration} # like the training data, some hundreds; no labels needed",
        f"evaluation = {evaluation} # none of them among the calibration samples",
    ]
    if model.preprocessing is not None:
        lines += ["", "[data.preprocessing] # as the model's file says", *_stored(model)]
    elif any(map(_is_picture, model.inputs)):
        lines += [
            "",
            "# How pictures (or pixels, uint8) become the input, as in training; floats need none.",
            "# Most networks that torchvision trained on ImageNet have mean [0.485, 0.456, 0.406],",
            '# std [0.229, 0.224, 0.225], resize "crop" and crop_share 0.875.',
            "# [data.preprocessing]",
            "# scale = 0.00392156862745098 # 1/255",
            "# mean = [0.0] # one number, or one a channel",
            "# std = [1.0]",
            '# resize = "stretch" # or "crop", "letterbox"',
        ]
    return "\n".join(lines) + "\n"


def _stored(model: Model) -> list[str]:
    assert model.preprocessing is not None
    default = preprocessing_to_json(Preprocessing())
    return [
        f"{name} = {json.dumps(value)}"
        for name, value in preprocessing_to_json(model.preprocessing).items()
        if value is not None and (value != default[name] or name in ("scale", "mean", "std"))
    ]


def _is_picture(spec: TensorSpec) -> bool:
    shape = spec.shape
    return len(shape) == 4 and (shape[1] in _PICTURE_CHANNELS or shape[3] in _PICTURE_CHANNELS)


def _evaluate_table(model: Model) -> str:
    first = model.outputs[0]
    classes = first.shape[1] if len(first.shape) == 2 else None
    if isinstance(classes, int) and classes > 1:
        why = f"{first.name} has a score for each of {classes} classes"
        return f'[evaluate]\nmetric = "top1" # {why}\n'
    return (
        "# How near the outputs are to the original's; give your own metric as file.py:function.\n"
        '[evaluate]\nmetric = "fidelity"\n'
    )


def _compress_tables(model: Model) -> str:
    found = find_groups(model)
    if found.groups:
        channels = ["[compress.channels]", "macs = 0.5 # the share of the multiply-adds to keep"]
    else:
        reasons: Sequence[str] = sorted(set(found.frozen.values()))[:3]
        channels = [
            f"# No channels can be removed: {'; '.join(reasons) or 'there are none'}.",
            "# [compress.channels]",
            "# macs = 0.5",
        ]
    missing = _untrainable(model)
    if not found.groups:
        recover = []
    elif missing:
        recover = [f"# It cannot be trained here: {missing}.", "# [compress.recover]"]
    else:
        recover = ["[compress.recover] # the original teaches the smaller one", "epochs = 6"]
    return "\n".join([*channels, "", *recover]) + "\n"


def _untrainable(model: Model) -> str:
    try:
        from edgekit.models.torch_module import torch_module, untrainable
    except ImportError:
        return ""  # the machine that trains will have torch
    missing = untrainable(model)
    if missing:
        return f"no {', '.join(sorted(missing))} in the executor"
    try:
        torch_module(model)
    except InputError as error:
        return error.what
    return ""


def _rest(wishes: Wishes) -> str:
    here = detect_machine()
    targets = wishes.targets or (here.target or "cpu",)
    return "\n".join(
        [
            "[engine]",
            'precision = "auto" # INT8 where the target has it',
            "",
            "[gate]",
            "max_drop = 0.01 # of the metric; min_fps, max_p99_ms, max_size_mb ... as you need",
            "",
            "[build]",
            f"targets = {json.dumps(list(targets))} # `edgekit targets` lists them",
            "",
        ]
    )


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else _text(name)
