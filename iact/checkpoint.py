"""Files of a run: weights (safetensors with the model's description inside) and what resuming needs."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from iact.errors import InputError
from iact.files import write_atomically
from iact.layout_file import layout_fields, parse_layout
from iact.layouts import LAYOUTS, Layout
from iact.model import IACT, ModelConfig

WEIGHTS = {"best": "best.safetensors", "last": "last.safetensors"}
RESUME = "resume.pt"
SHIPPED = Path(__file__).parent / "weights"  # a card beside each says what they are good for


@dataclass(frozen=True)
class Description:
    """What a weights file says of itself: the model, its landmark layout, and how it was trained."""

    model: ModelConfig
    layout: Layout
    sigma: float  # heatmap px; sets the decoding window
    epoch: int
    trained_on: str
    chosen_on: str  # the faces by which this epoch was chosen, or "" for the last epoch


def save_weights(path: Path, model: IACT, description: Description) -> None:
    """Writes the model's weights, and the description in the file's header: a built-in layout by name, others whole."""
    layout = description.layout
    kept = layout.name if layout.name in LAYOUTS else layout_fields(layout)
    text = json.dumps({**asdict(description), "layout": kept})
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    data = save(state, metadata={"iact": text})  # not save_file: it hides what is wrong with a disk and the umask
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def find_weights(path: Path) -> Path:
    """The weights file that a path means: itself, the best (else the last) of a run folder, or weights that the package
    brings along by their name, such as "iact-300w". InputError for none."""
    in_folder = [path / WEIGHTS["best"], path / WEIGHTS["last"]] if path.is_dir() else [path]
    for candidate in [*in_folder, SHIPPED / f"{path}.safetensors"]:
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors")))
    expected = f"a .safetensors file, a run folder with {WEIGHTS['best']}, or one of: {names or 'none'}"
    raise InputError(f"{path}: no weights here (expected {expected})")


def load_weights(path: Path) -> tuple[IACT, Description]:
    """The model that `find_weights` finds, in evaluation mode, and its description. InputError if damaged."""
    path = find_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("iact")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from None
    if text is None:
        raise InputError(f"{path}: these weights carry no description of an iact model")
    description, model = _parse(text, path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise InputError(f"{path}: the weights do not fit the model they describe ({first})") from None
    return model.eval(), description


def _parse(text: str, path: Path) -> tuple[Description, IACT]:
    """The description, and a new model as it says."""
    try:
        fields = json.loads(text)
        numbers = {key: tuple(value) if isinstance(value, list) else value for key, value in fields["model"].items()}
        config, kept = ModelConfig(**numbers), fields["layout"]
        layout = LAYOUTS[kept] if isinstance(kept, str) else parse_layout(kept, "layout")
        if config.num_landmarks != layout.num_landmarks or not 0 < fields["sigma"] <= config.input_size:
            raise ValueError(f"{config.num_landmarks} landmarks of layout {layout.name}, sigma {fields['sigma']}")
        if not all(isinstance(fields[name], str) for name in ("trained_on", "chosen_on")):
            raise TypeError(f"trained on {fields['trained_on']!r}, chosen on {fields['chosen_on']!r}")
        return Description(**{**fields, "model": config, "layout": layout}), IACT(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: the description of the model is damaged ({error!r})") from None


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Writes everything a run needs to go on: tensors, numbers and strings only."""
    buffer = io.BytesIO()  # torch.save to a full disk raises nothing that names the disk
    torch.save(state, buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_resume(path: Path) -> dict[str, Any]:
    """What `save_resume` wrote; nothing in it is executed. InputError when missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path}: no checkpoint to resume from")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: the checkpoint cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the unpickler raises whatever the bytes make it stumble over
        raise InputError(f"{path}: a damaged checkpoint, or none at all ({type(error).__name__})") from None
