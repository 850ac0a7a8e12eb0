"""The first steps of digits_resnet20, frozen: which samples, in which groups, with which pixels. A change here is
another run for everybody, so the file is never edited; a new format gets a new one."""

import json
from pathlib import Path

import numpy as np

from restrain.recipe import load
from restrain.run import ledger
from restrain.training import build

GOLDEN = Path(__file__).parent.parent / "golden" / "digits_v1.json"


def first_steps(steps: int) -> list[dict]:
    recipe = load("digits_resnet20", ["track.pixels=true"]).recipe
    data = build.open_data(recipe)
    plan = build.build_plan(recipe, data, [])
    order = build.build_order(recipe, data)
    where = build.Placement("cpu", 64, 1, 1)
    with_loader = build.build_train_loader(recipe, data, plan, build.World(), where, 0, steps)
    found = []
    for step, batch in enumerate(with_loader):
        epoch, groups = plan.groups(step)
        (micro,) = batch.micros
        assert micro.pixels is not None
        positions = groups.reshape(-1)
        _, samples = order(epoch, groups)
        found.append(
            {
                "epoch": epoch,
                "samples": samples.tolist(),
                "hash": f"{ledger.row_sum(micro.prefix, positions):016x}",
                "pixels": f"{ledger.pixel_sum(micro.pixels, epoch, positions):016x}",
            }
        )
    return found


def test_the_first_steps_of_digits_are_frozen() -> None:
    found, golden = first_steps(24), json.loads(GOLDEN.read_text())
    assert [step["epoch"] for step in found] == [0] * 22 + [1] * 2
    assert np.asarray(golden[0]["samples"]).shape == (4, 16)
    assert len(golden) == len(found)
    for step, entry in enumerate(golden):
        assert found[step] == entry, step


if __name__ == "__main__":  # writes a golden file for a new format; never over an old one
    assert not GOLDEN.exists(), f"{GOLDEN} is frozen"
    GOLDEN.write_text(json.dumps(first_steps(24)) + "\n")
