"""What a sweep runs: every combination, or draws that can be made again, and what it refuses."""

from dataclasses import replace

import pytest

from quintic.cli.grid import parse_vary
from quintic.config import Config, MuonConfig, differing_fields, field_types, flatten
from quintic.errors import QuinticError
from quintic.recipes import get_recipe
from quintic.sweep.plan import LONGEST_NAME, Choices, Plan, Range, make_plan, short_name

LAPTOP = get_recipe("laptop-plain")


def plan(*varied: str, base: Config = LAPTOP, seeds: int = 1, draws: int | None = None) -> Plan:
    return make_plan(base, [parse_vary(text) for text in varied], seeds=seeds, draws=draws)


def test_the_grid_is_every_combination_with_every_seed_and_all_with_the_first_seed_come_first() -> (
    None
):
    found = plan("optim.muon.lr=0.01,0.02", "train.batch-tokens=1024,2048,4096", seeds=2)
    assert [
        (run.config.optim.muon.lr, run.config.train.batch_tokens, run.config.train.seed)
        for run in found.runs
    ] == [
        (lr, batch, s) for s in (1337, 1338) for lr in (0.01, 0.02) for batch in (1024, 2048, 4096)
    ]
    assert len({run.name for run in found.runs}) == 12
    assert found.runs[0].name == "muon.lr=0.01,train.batch_tokens=1024,seed=1337"
    for run in found.runs:
        changed = {*differing_fields(LAPTOP, run.config)} - {"train.seed"}
        assert changed <= {"optim.muon.lr", "train.batch_tokens"}, "the rest is the recipe's"


def test_the_first_seed_is_that_of_the_recipe_or_of_the_command_line() -> None:
    base = LAPTOP.override({"train.seed": 7})
    assert [run.seed for run in plan("model.layers=2", base=base, seeds=3).runs] == [7, 8, 9]


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("train.compile=true,False", "train.compile", (True, False)),
        ("optim.clip-norm=None,1,0.5", "optim.clip_norm", (None, 1.0, 0.5)),
        ("optim.muon.scale=rms, aspect", "optim.muon.scale", ("rms", "aspect")),
        (
            "optim.adamw.betas=0.9 0.95,0.8 0.99",
            "optim.adamw.betas",
            ((0.9, 0.95), (0.8, 0.99)),
        ),
        ("model.layers=2,04", "model.layers", (2, 4)),
    ],
)
def test_values_have_the_type_of_their_field(
    text: str, field: str, values: tuple[object, ...]
) -> None:
    found = parse_vary(text)
    assert found == Choices(field, values)
    assert [type(value) for value in found.values] == [type(value) for value in values]
    assert len(make_plan(LAPTOP, [found]).runs) == len(values), "and a config takes them"


def test_options_of_an_own_optimizer_are_as_many_as_there_are() -> None:
    found = parse_vary("optim.custom.options=beta=0.9,beta=0.8 eps=1e-8,a=1 b=2 c=3")
    assert found == Choices(
        "optim.custom.options", (("beta=0.9",), ("beta=0.8", "eps=1e-8"), ("a=1", "b=2", "c=3"))
    )


def test_fields_that_depend_on_each_other_change_together() -> None:
    base = LAPTOP.override({"optim.schedule.cooldown_fraction": 0.0})
    found = plan("train.steps=10,20", "optim.schedule.warmup_steps=10", base=base)
    assert len(found.runs) == 2


def test_a_run_keeps_what_has_an_effect_in_it_of_the_recipe() -> None:
    muon, sgd = (run.config.optim for run in plan("optim.matrices=muon,sgd").runs)
    assert muon == LAPTOP.optim
    assert sgd == replace(LAPTOP.optim, matrices="sgd", muon=MuonConfig())


def test_draws_are_the_same_each_time_differ_by_seed_and_more_of_them_continue() -> None:
    varied = ("optim.muon.lr=1e-4..1e-1", "optim.muon.scale=aspect,rms", "model.layers=2..8")
    ten = [run.values for run in plan(*varied, draws=10).runs]
    assert ten == [run.values for run in plan(*varied, draws=10).runs]
    assert ten == [run.values for run in plan(*varied, draws=25).runs][:10]
    other = LAPTOP.override({"train.seed": 1})
    assert ten != [run.values for run in plan(*varied, base=other, draws=10).runs]
    assert len({tuple(values.values()) for values in ten}) == 10


def test_a_range_gives_each_decade_the_same_share_and_ends_at_its_bounds() -> None:
    lr = Range("optim.muon.lr", 1e-4, 1e-1)
    assert [lr.draw(share) for share in (0.0, 1 / 3, 2 / 3)] == [1e-4, 1e-3, 1e-2]
    assert lr.draw(0.999999) == 1e-1
    found = [run.values["optim.muon.lr"] for run in plan("optim.muon.lr=1e-4..1e-1", draws=60).runs]
    assert all(1e-4 <= value <= 1e-1 for value in found)
    # 20 are expected below 1e-3; four standard deviations are 14.6.
    assert 6 <= sum(value < 1e-3 for value in found) <= 34


def test_a_range_of_a_whole_number_gives_whole_numbers_up_to_both_bounds() -> None:
    found = plan("model.layers=2..5", draws=4)
    assert sorted(run.config.model.layers for run in found.runs) == [2, 3, 4, 5]


def test_a_drawn_value_can_be_read_and_stays_within_its_bounds() -> None:
    tight = Range("optim.muon.lr", 0.00123456, 0.00123457)
    assert tight.low <= tight.draw(0.5) <= tight.high
    assert len(str(Range("optim.muon.lr", 0.001, 0.1).draw(0.37))) <= len("0.005495")


@pytest.mark.parametrize(
    ("varied", "options", "message"),
    [
        ([], {}, "sweep needs something to vary"),
        (["optim.muon.lr"], {}, "--vary is 'optim.muon.lr': it must be a field and its values"),
        (["optim.muon.lr="], {}, "--vary is 'optim.muon.lr='"),
        (["optim.muon.rl=1"], {}, "there is no field optim.muon.rl: did you mean optim.muon.lr?"),
        (["lr=1"], {}, "there is no field lr: did you mean optim.muon.lr?"),
        (
            ["optim.muon.lr=1e-3,fast"],
            {},
            "--vary optim.muon.lr has the value 'fast': it must be a",
        ),
        (["optim.muon.lr=1,,2"], {}, "--vary optim.muon.lr has the value '': it must be a number"),
        (
            ["model.layers=1.5"],
            {},
            "--vary model.layers has the value '1.5': it must be an integer",
        ),
        (["optim.muon.scale=big"], {}, "'big': it must be one of max_dim, aspect, rms"),
        (["train.compile=yes"], {}, "'yes': it must be True or False"),
        (["optim.adamw.betas=0.9"], {}, "'0.9': it must be 2 values, each a number"),
        (["optim.muon.lr=1e-3,0.001"], {}, "--vary optim.muon.lr has the value 0.001 twice"),
        (["optim.clip_norm=None,None"], {}, "--vary optim.clip_norm has the value None twice"),
        (["model.layers=1", "model.layers=2"], {}, "--vary names model.layers twice"),
        (
            ["optim.muon.lr=-1"],
            {},
            "asks for muon.lr=-1.0,seed=1337, but optim.muon.lr is -1.0: it",
        ),
        (["optim.muon.lr=nan"], {}, "optim.muon.lr is nan: it must be finite"),
        (["model.width=64,65"], {}, "asks for model.width=65,seed=1337, but model.width 65 is not"),
        (["train.seed=1,2"], {}, "--vary cannot vary train.seed: give --seeds N"),
        (["data.path=a,b"], {}, "--vary cannot vary data.path: losses on other text do not compar"),
        (["recipe=a,b"], {}, "--vary cannot vary recipe"),
        (["optim.muon.lr=1e-4..1e-2"], {}, "from which values are drawn: say how many with --rand"),
        (["optim.muon.lr=0..1"], {"draws": 2}, "it must go from a number above 0 up to a larger"),
        (["optim.muon.lr=1..1"], {"draws": 2}, "it must go from a number above 0 up to a larger"),
        (["optim.muon.lr=1..inf"], {"draws": 2}, "it must go from a number above 0 up to a larger"),
        (["optim.muon.lr=..1"], {"draws": 2}, "has the value '': it must be a number"),
        (["optim.muon.scale=aspect..rms"], {"draws": 2}, "its values are no numbers: list them"),
        (["model.layers=2,3"], {"draws": 3}, "--random is 3 and there are only 2 combinations"),
        (["model.layers=2,3"], {"draws": 0}, "--random is 0: it must be at least 1"),
        (["model.layers=2,3"], {"seeds": 0}, "--seeds is 0: it must be at least 1"),
        (
            ["optim.matrices=muon,sgd", "optim.sgd.lr=0.1,0.2"],
            {},
            "asks for optim.matrices=muon,sgd.lr=0.1,seed=1337, but optim.sgd.lr is 0.1, which has "
            "no effect with optim.matrices muon",
        ),
        (["model.layers=2,3"], {"seeds": 1001}, "these are 2,002 runs, and a sweep has at most"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_value_rule_and_way_out(
    varied: list[str], options: dict[str, int], message: str
) -> None:
    with pytest.raises(QuinticError) as caught:
        plan(*varied, **options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_field_is_called_by_the_end_of_its_name_and_by_no_other_fields() -> None:
    assert short_name("optim.muon.lr") == "muon.lr"
    assert short_name("model.width") == "model.width"
    fields = field_types(Config)
    assert fields.keys() == flatten(LAPTOP).keys()
    assert len({short_name(field) for field in fields}) == len(fields)


def test_names_of_many_fields_stay_short_enough_for_a_file_and_differ() -> None:
    varied = [
        *("optim.muon.lr=1e-5..1e-1", "optim.muon.momentum=0.85..0.99", "optim.adamw.lr=1e-5..1"),
        *("optim.adamw.weight_decay=1e-5..1", "optim.muon.weight_decay=1e-5..1"),
        *("optim.adamw.eps=1e-12..1e-3", "optim.schedule.cooldown_fraction=0.1..0.9"),
        *("optim.clip_norm=0.1..9", "model.layers=2..20", "optim.muon.ns_steps=3..12"),
    ]
    names = [run.name for run in plan(*varied, seeds=2, draws=10).runs]
    assert len(set(names)) == 20
    assert max(map(len, names)) <= LONGEST_NAME
    assert all(name.endswith((",seed=1337", ",seed=1338")) for name in names)
