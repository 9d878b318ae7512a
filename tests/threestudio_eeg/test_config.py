from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.base import (
    BaseModule,
    BaseObject,
    Updateable,
    device_scope,
    get_device,
    parse_structured,
)
from threestudio_eeg.builtin.config import C, C_max, compose, load_config, parse_overrides
from threestudio_eeg.experiments import experiment_config

BASE = """
name: apple
tag: ${rmspace:${system.prompt_processor.prompt},_}
data_type: cameras
data: {batch_size: 2}
system_type: system
system:
  geometry_type: implicit-volume
  geometry: {radius: 2.0, size: "${add:${data.batch_size},3}"}
  prompt_processor: {prompt: a red mug}
  loss: {lambda_orient: [0, 10, 1000, 5000]}
"""


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


@dataclass
class Fields:
    weight: float = 1.0
    count: int = 3
    name: str = "x"
    extra: dict = field(default_factory=dict)


def test_defaults_and_given_values_are_merged():
    cfg = parse_structured(Fields, {"count": 5})
    assert (cfg.weight, cfg.count, cfg.name) == (1.0, 5, "x")


@pytest.mark.parametrize("make", [dict, OmegaConf.create])
def test_a_float_field_takes_a_schedule(make):
    cfg = parse_structured(Fields, make({"weight": [0, 1.0, 2.0, 100]}))
    assert C(cfg.weight, 0, 50) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"wieght": 1.0}, "wieght: found an unknown key, expected weight"),
        ({"count": "many"}, "count: found Value 'many'"),
        ({"name": [1, 2]}, "name: found the list"),
        ({"name": "???"}, "name: found"),
        (["count"], "config: found list"),
    ],
)
def test_bad_values_are_named(bad, words):
    with pytest.raises(InputError, match=words):
        parse_structured(Fields, bad, "config of fields")


def test_a_module_names_itself_in_its_errors():
    class Thing(BaseObject):
        pass

    with pytest.raises(InputError, match="Thing: radius: found an unknown key"):
        Thing({"radius": 1})


def test_layers_and_overrides_compose(base, tmp_path):
    layer = tmp_path / "layer.yaml"
    layer.write_text("system: {geometry: {radius: 3.0}}\n")
    config = load_config(base, layer, cli_args=["data.batch_size=4", "seed=7"])
    assert config.system.geometry == {"radius": 3.0, "size": 7}
    assert config.seed == 7
    assert config.trial_dir.startswith("outputs/apple/a_red_mug@")


def test_a_tag_makes_one_folder(base):
    config = load_config(base, cli_args=["system.prompt_processor.prompt=either/or " + "x" * 300])
    assert "/" not in config.trial_name
    assert len(config.trial_name) < 130


def test_changing_a_type_starts_its_section_afresh(base):
    raw = compose(base, cli_args=["system.geometry_type=grid", "system.geometry.size=1"])
    assert raw.system.geometry == {"size": 1}
    raw = compose(base, cli_args=["system.geometry_type=implicit-volume:mixin"])
    assert raw.system.geometry.radius == 2.0


def test_a_type_may_change_beside_interpolations_that_no_longer_resolve(base, tmp_path):
    words = ["system.prompt_processor_type=other", "tag=x"]
    layer = tmp_path / "layer.yaml"
    layer.write_text("system: {prompt_processor_type: eeg}\n")
    config = load_config(base, layer, cli_args=words)
    assert config.tag == "x"
    assert "prompt_processor" not in config.system
    with pytest.raises(InputError, match="tag: found .*prompt"):
        load_config(base, layer, cli_args=words[:1])
    layer.write_text("system: {geometry_type: '${nowhere}', geometry: '${nowhere}'}\n")
    raw = compose(base, layer, cli_args=["system.geometry_type=grid", "system.geometry.size=1"])
    assert raw.system.geometry == {"size": 1}
    layer.write_text("data_type: '${nowhere}'\n")
    with pytest.raises(InputError, match="nowhere"):
        load_config(base, layer)


@pytest.mark.parametrize("word", ["seed", "=3", "--seed=3", "a..b=1", "system.geometry"])
def test_an_override_is_key_value(word):
    with pytest.raises(InputError, match="command line: override"):
        parse_overrides([word])


def test_an_override_must_be_yaml():
    with pytest.raises(InputError, match="command line: override"):
        parse_overrides(["a=[1, {"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sistem: {}\n", "sistem: found an unknown key, expected system"),
        ("tag: ${nowhere}\n", "tag: found"),
        ("system_type: ''\n", "system_type: found nothing"),
        ("- a\n", "config: found a list"),
        ("a: [1\n", "config: found"),
    ],
)
def test_bad_files_are_named(base, tmp_path, text, words):
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        load_config(base, bad)
    assert "bad.yaml" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("${add:1,2}", 3),
        ("${sub:1,2}", -1),
        ("${mul:3,2}", 6),
        ("${div:3,2}", 1.5),
        ("${idiv:7,2}", 3),
        ("${basename:/a/b.c}", "b.c"),
        ("${rmspace:a b,_}", "a_b"),
        ("${calc_exp_lr_decay_rate:0.01,2}", 0.1),
        ("${gt0:1}", True),
        ("${cmaxgt0:[0,0.0,1.0,5]}", True),
        ("${cmaxgt0:[0,0.0,0.0,5]}", False),
        ("${cmaxgt0orcmaxgt0:0,1}", True),
        ("${not:true}", False),
    ],
)
def test_resolvers(base, expression, value):
    found = load_config(base, cli_args=[f"description={expression}"]).description
    assert found == str(value)


@pytest.mark.parametrize(
    ("value", "epoch", "step", "expected"),
    [
        (3, 0, 9, 3),
        (0.5, 0, 9, 0.5),
        ([1.0, 3.0, 10], 0, 5, 2.0),
        ([10, 1.0, 3.0, 20], 0, 0, 1.0),
        ([10, 1.0, 3.0, 20], 0, 15, 2.0),
        ([10, 1.0, 3.0, 20], 0, 99, 3.0),
        ([0, 1.0, 3.0, 4.0], 2, 9999, 2.0),
        ([0, 0.0, 1.0, 10, 5.0, 20], 0, 5, 0.5),
        ([0, 0.0, 1.0, 10, 5.0, 20], 0, 15, 3.0),
        ([5, 1.0, 0.0, 5], 0, 4, 1.0),
        ([5, 1.0, 0.0, 5], 0, 5, 0.0),
        ([5000, 0.98, 0.5, 5001], 0, 5000, 0.98),
        ([5000, 0.98, 0.5, 5001], 0, 5001, 0.5),
    ],
)
def test_schedules(value, epoch, step, expected):
    assert C(value, epoch, step) == pytest.approx(expected)
    assert C(OmegaConf.create({"v": value}).v, epoch, step) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_phantoms_schedules_of_a_run_of_no_thirds_are_steps(steps):
    words = [f"trainer.max_steps={steps}", "system.prompt_processor.conditioning=x"]
    cfg = load_config(experiment_config(Path("phantom/eeg.yaml")), cli_args=words)
    assert OmegaConf.to_container(cfg.system.loss.lambda_sparsity) == [0, 0.0, 1.0, 0]
    assert C(cfg.system.loss.lambda_sparsity, 0, 0) == 1.0
    assert C(cfg.system.loss.lambda_opaque, 0, steps) == 40.0


def test_exponential_schedules():
    assert C([0, 1.0, 100.0, 10], 0, 5, "exp") == pytest.approx(10.0)
    with pytest.raises(InputError, match="positive"):
        C([0, 0.0, 1.0, 10], 0, 5, "exp")


def test_the_largest_value_of_a_schedule():
    assert C_max([0, 0.0, 7.0, 10, 5.0, 20]) == 7.0


@pytest.mark.parametrize("bad", ["1.0", [1.0, 2.0], [0, 1, 2, 3, 4], [5, 1.0, 2.0, 3], None, True])
def test_bad_schedules_are_refused(bad):
    with pytest.raises(InputError, match="schedule"):
        C(bad, 0, 0)


class Counter(BaseModule):
    def configure(self) -> None:
        self.calls = 0

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.calls += 1


class Holder(Updateable):
    def __init__(self) -> None:
        self.shared = Counter({})
        self.other: Any = Counter({})
        self.other.geometry = self.shared
        self.other.parts = torch.nn.ModuleList([Counter({})])
        self.other.me = None
        self.other.__dict__["me"] = self


def test_each_part_is_updated_once_a_step():
    holder = Holder()
    holder.do_update_step(0, 1)
    parts = [holder.shared, holder.other, holder.other.parts[0]]
    assert [part.calls for part in parts] == [1, 1, 1]


def test_the_device_is_explicit():
    with device_scope("meta"):
        assert get_device() == torch.device("meta")
    assert get_device().type in ("cpu", "cuda")


def test_weights_of_a_module_come_from_a_checkpoint(tmp_path):
    class Layer(BaseModule):
        def configure(self) -> None:
            self.linear = torch.nn.Linear(2, 2)

    source = Layer({})
    state = {f"geometry.{k}": v for k, v in source.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 0, "global_step": 5}, path)
    loaded = Layer({"weights": f"{path}:geometry"})
    assert torch.equal(loaded.linear.weight, source.linear.weight)
    with pytest.raises(InputError, match="found geometri, expected geometry"):
        Layer({"weights": f"{path}:geometri"})
    with pytest.raises(InputError, match="path:module"):
        Layer({"weights": "last"})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="checkpoint: found"):
        Layer({"weights": f"{path}:geometry"})
