"""Settings chosen by trials on validation data alone, the same for every method, interrupted or not."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cujax import commands
from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.run import Run
from cujax.experiments.trials import OBJECTIVES, Trial, draw, halve, rank_over_seeds, shortened, tried_first
from cujax.experiments.tune import Tuning, prepare_tuning, read_settings
from cujax.methods import ContrastiveUnlearning, FineTune, Scrub, SelectiveSynapticDampening
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform
from cujax.methods.traits import published_settings
from cujax.training.supervised import Training

ROOT = Path(__file__).parents[2]
TOLERANCE = OBJECTIVES["accuracy"].tolerance
SPACE = {"learning_rate": LogUniform(1e-3, 1e-1), "max_passes": LogUniform(1, 20)}


def trial(*, drop=0.0, unforgotten=0.0, steps=10):
    return Trial({"learning_rate": 0.01, "max_passes": 3}, 0.0, 0.0, drop, unforgotten, steps, 1.0, "stop_rule")


TUNING = Tuning(
    data=Data("digits", limit=400),
    training=Training(epochs=3),
    methods=("fine_tune", "contrastive"),
    request="class:5",
    trials=2,
    seeds=(0,),
)


@pytest.fixture
def tuning(tmp_path):
    return dataclasses.replace(TUNING, workdir=str(tmp_path / "tuned"))


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The folder of one method's tuning with one trial."""
    folder = tmp_path_factory.mktemp("once") / "tuned"
    prepare_tuning(dataclasses.replace(TUNING, trials=1, methods=("fine_tune",), workdir=str(folder))).run()
    return folder


@pytest.fixture
def tuned(once, tuning):
    """That tuning in a folder of its own, where all is computed."""
    shutil.copytree(once, tuning.workdir)
    return prepare_tuning(dataclasses.replace(tuning, trials=1, methods=("fine_tune",)))


def test_what_harms_never_wins_then_what_forgets_most_then_what_keeps_the_rest_then_the_fewest_steps():
    best = trial(drop=-0.01, unforgotten=0.1, steps=20)
    slower = trial(unforgotten=0.1, steps=30)
    brittle = trial(drop=0.01, unforgotten=0.1, steps=1)
    remembers = trial(unforgotten=0.2, steps=1)
    at_the_limit = trial(drop=TOLERANCE, unforgotten=0.3)
    harms = trial(drop=TOLERANCE + 0.01)
    harms_more = trial(drop=0.5)
    ranked = [best, slower, brittle, remembers, at_the_limit, harms, harms_more]
    shuffled = [brittle, harms, slower, at_the_limit, harms_more, best, remembers]
    assert sorted(shuffled, key=lambda one: one.rank) == ranked


def test_a_draw_depends_on_seed_and_number_alone():
    first = [draw(SPACE, [], sampler="halton", seed=3, number=number) for number in range(4)]
    again = [draw(SPACE, [trial()] * 9, sampler="halton", seed=3, number=number) for number in range(4)]
    assert first == again
    assert len({one["learning_rate"] for one in first}) == 4
    assert first[0] != draw(SPACE, [], sampler="halton", seed=4, number=0)


def test_a_few_trials_leave_no_gaps_between_them():
    drawn = [draw(SPACE, [], sampler="halton", seed=0, number=number) for number in range(8)]
    for name, space in SPACE.items():
        places = np.sort([space.place(one[name]) for one in drawn])
        assert np.diff(places).max() < 0.35
        assert places[0] < 0.3
        assert places[-1] > 0.7


def test_optuna_learns_from_earlier_trials_and_repeats_itself():
    earlier = [
        dataclasses.replace(trial(unforgotten=abs(np.log10(rate) + 2)), settings={"learning_rate": rate, "max_passes": 3})
        for rate in np.geomspace(1.1e-3, 9e-2, 30)
    ]
    drawn = [draw(SPACE, earlier, sampler="tpe", seed=0, number=number) for number in range(30, 40)]
    assert drawn[0] == draw(SPACE, earlier, sampler="tpe", seed=0, number=30)
    assert np.median([abs(np.log10(one["learning_rate"]) + 2) for one in drawn]) < 0.4  # by chance it would be 0.5


def test_the_first_trial_is_the_published_setting():
    assert published_settings(Scrub, "class") == {}
    official = ContrastiveUnlearning(**published_settings(ContrastiveUnlearning, "samples"))
    assert official == ContrastiveUnlearning.official("samples")


def test_the_first_trials_are_the_published_setting_and_that_of_the_reproduction():
    assert tried_first(FineTune, "samples") == [{}]
    assert tried_first(Scrub, "class") == [{}, dict(Scrub.reproduction["class"])]
    small = published_settings(Scrub, "samples")
    assert Scrub(**small) == Scrub.small()
    assert tried_first(Scrub, "samples")[0] == small


def test_a_space_with_choices_is_drawn_by_both_samplers():
    space = {"optimizer": OPTIMIZERS, "learning_rate": ByOptimizer(LogUniform(0.01, 1.0), LogUniform(1e-4, 1e-3))}
    halton = [draw(space, [], sampler="halton", seed=0, number=number) for number in range(8)]
    assert {one["optimizer"] for one in halton} == {"sgd", "adamw"}
    earlier = [dataclasses.replace(trial(), settings=one) for one in halton]
    for one in [*halton, draw(space, earlier, sampler="tpe", seed=0, number=8)]:
        low, high = (0.01, 1.0) if one["optimizer"] == "sgd" else (1e-4, 1e-3)
        assert low <= one["learning_rate"] <= high


def halved(figures, *, number=12, always=1, seeds=(0, 1, 2)):
    """What is tried and chosen where `figures(k, share, seed)` gives the keywords of `trial`."""
    made = []

    def attempt(settings, share, seed):
        found = trial(**figures(settings["k"], share, seed))
        made.append((settings["k"], share, seed))
        return dataclasses.replace(found, settings=settings, share=share, seed=seed)

    return halve(lambda earlier, k: {"k": k}, attempt, number=number, always=always, seeds=seeds), made


def test_the_best_third_goes_on_and_the_best_three_of_those_on_every_seed():
    chosen, made = halved(lambda k, share, seed: {"unforgotten": abs(k - 7) / 10})
    assert [one for one in made if one[1] < 1] == [(k, 1 / 3, 0) for k in range(12)]
    assert [k for k, share, seed in made if share == 1 and seed == 0] == [0, 5, 6, 7, 8], "the first one always"
    assert sorted({k for k, _, seed in made if seed > 0}) == [6, 7, 8]
    assert chosen.settings == {"k": 7}
    assert [one.seed for one in chosen.over_seeds] == [0, 1, 2]
    assert len(chosen.trials) == len(made) == 12 + 5 + 3 * 2


@pytest.mark.parametrize("fault", [{"drop": 0.2}, {"unforgotten": 0.3}])
def test_a_setting_that_fails_with_one_seed_loses_to_one_that_holds(fault):
    def figures(k, share, seed):
        return {"unforgotten": 0.0 if k == 3 else 0.1 + k / 100, **(fault if (k, seed) == (3, 2) else {})}

    chosen, _ = halved(figures)
    assert chosen.settings == {"k": 0}
    assert chosen.is_admissible
    worst = [trial(), trial(**fault), trial()]
    assert rank_over_seeds(worst) > rank_over_seeds([trial(unforgotten=0.15)] * 3)


def test_a_single_setting_on_a_single_seed_is_tried_short_and_in_full():
    chosen, made = halved(lambda k, share, seed: {}, number=1, seeds=(4,))
    assert made == [(0, 1 / 3, 4), (0, 1.0, 4)]
    assert chosen.over_seeds == chosen.trials[1:]


def test_a_shorter_method_makes_fewer_passes_of_each_kind():
    assert shortened(Scrub(max_passes=8, max_steps=5), 1 / 3) == Scrub(max_passes=3, max_steps=2)
    assert shortened(FineTune(max_passes=1), 1 / 3) == FineTune(max_passes=1)
    assert shortened(SelectiveSynapticDampening(), 1 / 3) == SelectiveSynapticDampening()


def test_tuning_is_continued_trial_by_trial_and_writes_settings(tuning, monkeypatch):
    path, found = prepare_tuning(tuning).run()
    assert read_settings(path) == found
    assert set(found["methods"]) == {"fine_tune", "contrastive"}
    shares = {name: [one["share"] for one in method["trials"]] for name, method in found["methods"].items()}
    assert shares["fine_tune"][:3] == [1 / 3, 1 / 3, 1.0]
    assert shares["contrastive"] == [1.0, 1.0], "one pass cannot be made shorter"
    for method in found["methods"].values():
        best = min((Trial(**one) for one in method["trials"] if one["share"] == 1), key=lambda one: one.rank)
        assert method["settings"] == best.settings
        assert method["over_seeds"] == [dataclasses.asdict(best)]
    tried = []
    call = FineTune.__call__
    monkeypatch.setattr(FineTune, "__call__", lambda self, *a, **k: (tried.append(self), call(self, *a, **k))[1])
    more = prepare_tuning(dataclasses.replace(tuning, trials=3, methods=("fine_tune",))).run()[1]
    short = [one for one in more["methods"]["fine_tune"]["trials"] if one["share"] < 1]
    assert short[:2] == found["methods"]["fine_tune"]["trials"][:2]
    assert len(short) == 3
    assert 1 <= len(tried) <= 2, "the new one's short trial, and its full one where it is promoted"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_neither_test_data_nor_a_retrained_model_has_a_say(tuning, objective, monkeypatch):
    def forbidden(self):
        raise AssertionError("tuning looked at test data or a retrained model")

    monkeypatch.setattr(Run, "test_images", property(forbidden))
    monkeypatch.setattr(Run, "retrained", forbidden)
    prepare_tuning(dataclasses.replace(tuning, trials=1, methods=("contrastive",), objective=objective)).run()


@pytest.mark.parametrize("request_", ["class:5", "random:0.1"])
def test_features_have_a_say_where_they_are_asked_and_earlier_trials_are_not_mixed_with_theirs(tuning, request_):
    tuning = dataclasses.replace(tuning, request=request_, methods=("fine_tune",), trials=1)
    path, found = prepare_tuning(tuning).run()
    before = path.read_text()
    other_path, other = prepare_tuning(dataclasses.replace(tuning, objective="features")).run()
    assert other_path.parent == path.parent
    assert path.read_text() == before
    assert read_settings(other_path) == other
    plain, deep = (one["methods"]["fine_tune"]["trials"][-1] for one in (found, other))
    assert plain["traces"] == {}
    assert plain["forget_accuracy"] == deep["forget_accuracy"]
    assert set(deep["traces"]) == {"loss", "features"}
    assert deep["unforgotten"] == pytest.approx(plain["unforgotten"] + sum(deep["traces"].values()))
    assert (plain["tolerance"], deep["tolerance"]) == (0.02, 0.01)
    assert not dataclasses.replace(Trial(**deep), retain_drop=0.015).is_admissible
    assert "recognise" in other["rule"]


def test_a_class_without_validation_images_is_refused(tuning):
    with pytest.raises(ValueError, match="no validation image of the classes that class:1 names, so"):
        prepare_tuning(dataclasses.replace(tuning, data=Data("digits", limit=50), request="class:1"))


def test_a_trial_is_what_the_method_does_when_it_is_run(tuned):
    path, found = tuned.run()
    short, one = found["methods"]["fine_tune"]["trials"]
    assert (short["share"], one["share"]) == (1 / 3, 1.0)
    assert short["steps"] == pytest.approx(one["steps"] * 4 / 10), "4 of 10 passes"
    (folder,) = (tuned.workdir / "tuning" / "class-5").iterdir()
    assert folder == path.parent
    experiment = tuned.cells.experiment(ForgetClass(5), FineTune(), 0)
    history = tuned.cells.prepare(experiment, "again").unlearned().metadata.record
    assert one["steps"] == history["cost"]["steps"]
    assert one["forget_accuracy"] <= history["checks"][-1]["forget_accuracy"]
    assert one["retain_drop"] == pytest.approx(
        history["checks"][0]["retain_accuracy"] - history["checks"][-1]["retain_accuracy"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("nothing",)}, "'nothing' does not exist"),
        ({"methods": ("mask_logit",)}, "none of the methods mask_logit fits the request and has anything to tune"),
        ({"request": "klass:5"}, "give class:LABEL"),
        ({"request": "class:77"}, "77"),
        ({"multihost": True}, "leave out --multihost"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(tuning, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare_tuning(dataclasses.replace(tuning, **changes))
    assert not (tmp_path / "tuned").exists()


def test_a_method_that_does_not_fit_the_request_is_left_out_with_its_reason(tuning):
    told = []
    changed = dataclasses.replace(tuning, request="random:0.1", methods=("unsir", "fine_tune"))
    assert list(prepare_tuning(changed, notify=told.append).methods) == ["fine_tune"]
    assert any("left out: unsir: unsir makes noise against whole classes" in sentence for sentence in told)


def test_no_trials_are_refused():
    with pytest.raises(ValueError, match="trials must be at least 1, but is 0"):
        Tuning(trials=0)


def test_tpe_without_optuna_names_the_extra(tuning, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="uv run --extra tune"):
        prepare_tuning(dataclasses.replace(tuning, sampler="tpe"))


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", json.dumps({"methods": {"scrub": 3}})])
def test_other_files_are_not_taken_for_settings(tmp_path, text):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="cujax tune"):
        read_settings(path)


def test_a_missing_file_of_settings_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="cujax tune"):
        read_settings(tmp_path / "none.json")


def test_the_script_says_what_was_chosen_and_where(tmp_path, capsys):
    arguments = "--data.limit", "300", "--training.epochs", "1", "--trials", "1", "--methods", "fine_tune"
    arguments += "--workdir", str(tmp_path / "run")
    assert commands.run("tune", arguments) == 0
    printed = capsys.readouterr().out
    assert "published settings" in printed
    assert Path(printed.split("--settings: ")[1].strip()).is_file()


def test_a_method_that_trains_anew_gets_the_recipe_of_the_original(tuning):
    changed = dataclasses.replace(tuning, request="random:0.1", methods=("margin_matching",), trials=1)
    _, found = prepare_tuning(changed).run()
    assert [trial["failed"] for trial in found["methods"]["margin_matching"]["trials"]] == ["", ""]


def test_a_method_that_raises_is_recorded_and_the_others_go_on(tuning, monkeypatch):
    def broken(self, *arguments, **options):
        raise RuntimeError("out of something")

    monkeypatch.setattr(FineTune, "__call__", broken)
    path, found = prepare_tuning(dataclasses.replace(tuning, trials=1)).run()
    trial = found["methods"]["fine_tune"]["trials"][-1]
    assert trial["failed"] == "RuntimeError: out of something"
    assert not found["methods"]["fine_tune"]["admissible"]
    other = found["methods"]["contrastive"]["trials"][-1]
    assert other["failed"] == ""
    assert read_settings(path) == found


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", '{"cujax": {}, "content": []}'])
def test_damaged_trials_are_refused_with_the_file(tuned, text):
    path, _ = tuned.run()
    stored = path.parent / "fine_tune-halton.json"
    stored.write_text(text)
    with pytest.raises(ValueError, match=f"{stored}.*delete"):
        tuned.run()


def test_a_changed_digit_in_settings_is_refused(tuned):
    path, _ = tuned.run()
    text = path.read_text()
    path.write_text(text.replace('"trials": 1', '"trials": 7', 1))
    with pytest.raises(ValueError, match=f"{path} does not match its digest"):
        read_settings(path)
