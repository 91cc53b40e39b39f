import datetime
import json

import numpy as np

from nestling import __version__
from nestling.measure.environment import describe_environment


def test_environment_is_json_with_versions_hardware_and_date():
    environment = json.loads(json.dumps(describe_environment(seed=3, command="nestling measure")))
    assert environment["nestling"] == __version__
    assert environment["numpy"] == np.__version__
    assert environment["seed"] == 3
    assert environment["command"] == "nestling measure"
    assert environment["cpu"]
    assert environment["num_cores"] >= 1
    written = datetime.datetime.fromisoformat(environment["date"])
    assert written.utcoffset() == datetime.timedelta(0)


def test_no_command_is_no_entry():
    assert "command" not in describe_environment(seed=0, command=None)
