"""LightlyTrain: `lightly_train.pretrain` with the method of its own that is nearest to LeJEPA.

It has no LeJEPA. With two views that is SimCLR, one encoder without a teacher; with more it is DINO, its only method
for more than two views, whose teacher embeds two of them once more without gradients.
Source: docs.lightly.ai/train/stable/pretrain_distill
"""

from typing import Any

from benchmarks.train_window import Settings, Window, run_side


def train(settings: Settings, window: Window) -> None:
    """Its function with our backbone name, views, batch and workers, and its defaults for the rest."""
    import lightly_train

    others = settings.sizes[2:]
    method = "dino" if others else "simclr"
    window.facts["differs"] = [
        "SimCLR, no LeJEPA" if method == "simclr" else "DINO, no LeJEPA; its teacher embeds two views once more",
        "its optimiser (SGD)",
        "float32 views, normalised in the loader",
        "contiguous memory format",
    ]
    if settings.n_global > 2 and settings.n_local:
        window.facts["differs"].append(f"two global views; the other {len(others)} are local ones")
    model_args: dict[str, Any] = {"drop_path_rate": settings.drop_path} if settings.drop_path else {}
    with window.follow():
        lightly_train.pretrain(
            out=f"{settings.out}/run",
            data=settings.archive,
            model=f"timm/{settings.backbone}",
            model_args=model_args,
            method=method,
            epochs=1,
            batch_size=settings.batch,
            num_workers=settings.workers,
            devices=1,
            accelerator="gpu" if settings.accelerator == "cuda" else "cpu",
            precision=settings.precision,
            transform_args=transform(settings),
        )


def transform(settings: Settings) -> dict[str, Any]:
    """The views in its names; jitter .4, .4, .2, .1, blur .5 and solarize .2, as on the other sides."""
    blur = {"prob": 0.5, "sigmas": (0.1, 2.0), "blur_limit": 0}
    solarize = {"prob": 0.2, "threshold": 0.5}
    jitter = {"prob": 0.8, "strength": 0.5, "brightness": 0.8, "contrast": 0.8, "saturation": 0.4, "hue": 0.2}
    (size, area), others = settings.sizes[0], settings.sizes[2:]
    shared: dict[str, Any] = {
        "image_size": (size, size),
        "random_resize": {"min_scale": area[0], "max_scale": area[1]},
        "color_jitter": jitter,
        "gaussian_blur": blur,
        "solarize": solarize,
    }
    if not others:
        return shared
    side, part = others[-1]
    local = {
        "num_views": len(others),
        "view_size": (side, side),
        "random_resize": {"min_scale": part[0], "max_scale": part[1]},
        "gaussian_blur": blur,
    }
    return {**shared, "global_view_1": {"gaussian_blur": blur, "solarize": solarize}, "local_view": local}


if __name__ == "__main__":
    run_side(train, package="lightly-train")
