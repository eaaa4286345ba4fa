"""Small files in the official layouts of 300W, WFLW and COFW, for tests to write and to break."""

import cv2
import h5py
import numpy as np

POINTS_68 = [f"{10 + index} {20.5 + index}" for index in range(68)]


def pts(points=POINTS_68, header="version: 1\nn_points: 68\n{\n", end="\n}\n"):
    return header + "\n".join(points) + end


def write_picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (120, 100, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix.lower(), image)[1].tobytes())


def write_w300(root, part, name, text=None, suffix=".jpg"):
    write_picture(root / part / (name + suffix))
    path = root / part / f"{name}.pts"
    path.write_text(pts() if text is None else text)
    return path


def wflw_tokens(path="0--Parade/a.jpg", flags="000000"):
    return [f"{value / 4:.6f}" for value in range(196)] + ["1", "2", "30", "40", *flags, path]


def write_wflw(root, lines, split="train", picture="0--Parade/a.jpg"):
    write_picture(root / "WFLW_images" / picture)
    folder = root / "WFLW_annotations/list_98pt_rect_attr_train_test"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"list_98pt_rect_attr_{split}.txt"
    path.write_text("".join(" ".join(tokens) + "\n" for tokens in lines))
    return path


def write_cofw(root, split="train", faces=3, points=None, images=None, drop=None):
    """A file in the official layout: [W, H] or [3, W, H] pictures behind references, everything transposed."""
    suffix = {"train": "Tr", "test": "T"}[split]
    path = root / f"COFW_{split}_color.mat"
    generator = np.random.default_rng(0)
    if images is None:
        images = [generator.integers(0, 256, ((3, 50, 40) if i % 2 else (50, 40)), np.uint8) for i in range(faces)]
    if points is None:
        points = np.concatenate([generator.uniform(1, 40, (58, faces)), np.zeros((29, faces))])
    with h5py.File(path, "w") as file:
        references = [file.create_dataset(f"#refs#/{index}", data=image).ref for index, image in enumerate(images)]
        arrays = {"phis": points, "bboxes": np.array([[5.0], [6], [20], [30]]).repeat(faces, axis=1)}
        for key, array in arrays.items():
            if key != drop:
                file[key + suffix] = array
        file.create_dataset("Is" + suffix, data=np.array([references], dtype=h5py.ref_dtype))
    return path
