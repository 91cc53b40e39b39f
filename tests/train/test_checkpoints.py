import json
import resource

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim

from nestling.core.files import seal
from nestling.errors import TrainingError, WriteError
from nestling.train.checkpoints import Checkpoints, join_tensors, split_tensors


def make_model():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return module, optim.AdamW(module.parameters(), lr=0.1)


def take_steps(module, optimizer, num_steps):
    for _ in range(num_steps):
        module(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def write(checkpoints, *steps, best_step=None):
    module, optimizer = make_model()
    for step in steps:
        take_steps(module, optimizer, 1)
        checkpoints.write(
            step, module=module, optimizer=optimizer, state={"best_step": best_step, "note": step}
        )
    return module, optimizer


def newest_step(folder):
    """The step that would be continued, and what is warned of."""
    notes: list[str] = []
    checkpoint = Checkpoints(folder).newest(notes.append)
    return checkpoint and checkpoint.step, notes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_model_and_optimizer_come_back_to_the_bit(tmp_path):
    module, optimizer = write(Checkpoints(tmp_path), 1, 2, 3)
    other, other_optimizer = make_model()
    checkpoint = Checkpoints(tmp_path).newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.state["note"] == 3
    checkpoint.load_into(other, other_optimizer)
    torch.manual_seed(1)
    take_steps(module, optimizer, 3)
    torch.manual_seed(1)
    take_steps(other, other_optimizer, 3)
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    groups = other_optimizer.state_dict()["param_groups"]
    assert groups == optimizer.state_dict()["param_groups"]
    assert isinstance(groups[0]["betas"], tuple)


def test_shared_weights_are_written_once_and_stay_shared(tmp_path):
    def make_tied():
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        module[1].weight = module[0].weight
        return module, optim.SGD(module.parameters(), lr=0.1)

    module, optimizer = make_tied()
    Checkpoints(tmp_path).write(1, module=module, optimizer=optimizer, state={"best_step": None})
    other, other_optimizer = make_tied()
    checkpoint = Checkpoints(tmp_path).newest(pytest.fail)
    assert checkpoint is not None
    checkpoint.load_into(other, other_optimizer)
    assert other[1].weight is other[0].weight
    assert torch.equal(other[0].weight, module[0].weight)


def test_the_newest_two_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1, 2, 3, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    write(checkpoints, 5, 6, 7, best_step=4)
    assert names(tmp_path) == ["step-00000004", "step-00000006", "step-00000007"]


def test_a_new_best_does_not_take_the_old_one_from_the_checkpoint_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1, 2, 3, best_step=1)
    write(checkpoints, 4, best_step=4)
    assert names(tmp_path) == ["step-00000001", "step-00000003", "step-00000004"]
    (tmp_path / "step-00000004" / "state.json").unlink()
    assert newest_step(tmp_path)[0] == 3


def test_an_empty_folder_has_none(tmp_path):
    assert newest_step(tmp_path) == (None, [])
    assert newest_step(tmp_path / "missing") == (None, [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, name, damage):
    write(Checkpoints(tmp_path), 1, 2)
    file = tmp_path / "step-00000002" / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        place = len(content) // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    step, (note,) = newest_step(tmp_path)
    assert step == 1
    assert "passed over half-written or damaged checkpoints" in note
    assert "step-00000002" in note
    assert name in note
    assert note.endswith("; the training goes on from step-00000001")


def test_a_half_written_one_is_warned_of_and_removed_by_the_writer(tmp_path):
    write(Checkpoints(tmp_path), 1)
    (tmp_path / ".step-00000002.part").mkdir()
    step, (note,) = newest_step(tmp_path)
    assert step == 1
    assert ".step-00000002.part" in note
    Checkpoints(tmp_path).remove_parts()
    assert names(tmp_path) == ["step-00000001"]


def test_without_a_whole_one_the_training_starts_over(tmp_path):
    write(Checkpoints(tmp_path), 1)
    (tmp_path / "step-00000001" / "model.safetensors").unlink()
    step, (note,) = newest_step(tmp_path)
    assert step is None
    assert note.endswith("; the training starts from the beginning")
    write(Checkpoints(tmp_path), 1)  # takes the place of the damaged one
    assert newest_step(tmp_path) == (1, [])


def test_a_checkpoint_whose_best_one_is_damaged_is_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)
    write(checkpoints, 2, best_step=1)
    (tmp_path / "step-00000001" / "model.safetensors").write_bytes(b"")
    assert newest_step(tmp_path)[0] is None


def test_a_newer_version_is_not_taken_for_damage(tmp_path):
    write(Checkpoints(tmp_path), 1)
    file = tmp_path / "step-00000001" / "state.json"
    state = json.loads(file.read_text())
    del state["checksum"]
    file.write_text(json.dumps(seal({**state, "checkpoint_version": 99})))
    with pytest.raises(TrainingError, match=r"has version 99, newer than 1.*Upgrade nestling"):
        newest_step(tmp_path)


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    module, optimizer = write(checkpoints, 1)
    with torch.no_grad():
        module[2].weight[0, 0] = torch.nan
    with pytest.raises(
        TrainingError, match=r"after step 2 these are not: 2\.weight\. The last good"
    ):
        checkpoints.write(2, module=module, optimizer=optimizer, state={"best_step": None})
    assert names(tmp_path) == ["step-00000001"]


def test_another_model_does_not_fit(tmp_path):
    write(Checkpoints(tmp_path), 1)
    checkpoint = Checkpoints(tmp_path).newest(pytest.fail)
    assert checkpoint is not None
    other = nn.Linear(3, 4)
    with pytest.raises(
        TrainingError, match=r"does not fit the model.*Name another --out, or start"
    ):
        checkpoint.load_into(other, optim.AdamW(other.parameters()))


@pytest.mark.parametrize("limit", [100, 700])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, limit):
    """A limit on file sizes is a disk that is full, for this process."""
    checkpoints = Checkpoints(tmp_path)
    module, optimizer = write(checkpoints, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(WriteError, match=r"cannot write .*step-00000002"):
            checkpoints.write(2, module=module, optimizer=optimizer, state={"best_step": None})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["step-00000001"]
    assert newest_step(tmp_path) == (1, [])


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(WriteError, match="a file is where a folder should be"):
        write(Checkpoints(tmp_path / "run"), 1)


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
tensors = st.lists(st.floats(width=32, allow_nan=False)).map(torch.tensor)
trees = st.recursive(
    plain | tensors,
    lambda node: (
        st.lists(node)
        | st.lists(node).map(tuple)
        | st.dictionaries(st.integers() | st.text(), node)
    ),
    max_leaves=8,
)


@given(trees)
def test_a_tree_is_split_into_json_and_tensors_and_joined_again(tree):
    json_part, tensors = split_tensors(tree)
    joined = join_tensors(json.loads(json.dumps(json_part)), tensors)

    def same(left, right):
        assert type(left) is type(right)
        if isinstance(left, torch.Tensor):
            assert torch.equal(left, right)
        elif isinstance(left, dict):
            assert list(left) == list(right)
            same([*left.values()], [*right.values()])
        elif isinstance(left, (list, tuple)):
            assert len(left) == len(right)
            for one, other in zip(left, right, strict=True):
                same(one, other)
        else:
            assert left == right

    same(tree, joined)


def test_an_optimizer_that_remembers_something_else_is_refused():
    with pytest.raises(TrainingError, match=r"got object at optimizer\.state\.0\."):
        split_tensors({"state": [object()]})
