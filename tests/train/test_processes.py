import os
import subprocess
import sys

SCRIPT = """
import atexit
from torch import distributed
atexit.register(lambda: print("in a group:", distributed.is_initialized()))
distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
from nestling.train.processes import leave_group_at_exit
leave_group_at_exit()
leave_group_at_exit()
print("in a group:", distributed.is_initialized())
"""


def test_a_process_leaves_its_group_before_it_ends():
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={**os.environ}
    )
    assert finished.stdout.splitlines() == ["in a group: True", "in a group: False"], (
        finished.stderr
    )


def test_a_process_without_a_group_has_nothing_to_leave():
    from nestling.train.processes import leave_group_at_exit, process_state

    leave_group_at_exit()
    assert process_state().num_processes == 1
