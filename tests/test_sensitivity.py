"""Sites whose norm by itself moves the answers most become weight norm."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import every_site, randomize
from test_swap import batch

import kerasnorm
from kerasnorm.distillation.answer_loss import AnswerLoss
from kerasnorm.distillation.losses import Distance
from kerasnorm.fit import fit_model
from kerasnorm.graph.graph import graph_of
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.graph.output_heads import Head
from kerasnorm.swap import calibrate, sensitivity
from kerasnorm.swap.decide import decide

layers = keras.layers
MODELS = ("residual", "nested", "pre_activation", "shared_bn", "bn_after_activation", "three_deep")
ROWS = 120


@pytest.fixture
def all_run(monkeypatch):
    """No site is passed over because its norm fits well; a swap is the fits of its sites alone."""
    monkeypatch.setattr(sensitivity, "_INSENSITIVE", 2.0)
    monkeypatch.setattr(calibrate, "_LEAST_TO_CHOOSE", 10**6)
    monkeypatch.setattr(fit_model, "_in_between", lambda *_: [])
    monkeypatch.setattr(fit_model, "ROUGH", 16384)  # as many rows as a swap takes


def flat(data):
    return keras.tree.flatten(data)


def losses_of(source, target, data, damping=(0.0,)):
    arrays = flat(data)
    parts = [[a[i : i + 20] for a in arrays] for i in range(0, ROWS, 20)]
    decision = decide(graphs_of(source), target, None)
    return decision, sensitivity.sensitivity(decision, parts, damping, seed=0, memory_budget=10**9)


def information(name, source, arrays):
    """What the answers say: nats from the mean answer, 1 at most, of one softmax."""
    if name != "residual":
        return 1.0
    p = np.asarray(source(arrays[0])).astype("float64")
    return min(1.0, np.mean(np.sum(p * np.log(p / p.mean(0)), 1)))


@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
@pytest.mark.parametrize("name", MODELS)
def test_a_loss_is_that_of_the_site_alone(name, target, all_run, closed_form):
    source = getattr(tiny_models, name)()
    data = batch(source, rows=ROWS)
    randomize(source, data)
    decision, losses = losses_of(source, target, data)
    _, requests = decision.carry_out((0.0,))
    assert losses.keys() == requests.keys()
    assert losses
    number = np.arange(80, ROWS)
    judged = [array[number[number % 10 != 9]] for array in flat(data)]
    loss = AnswerLoss(graphs_of(source), judged)
    few = keras.tree.map_structure(lambda array: array[:80], data)
    for site, received in losses.items():
        calls = [site]
        if name == "shared_bn" and target != "cosine":  # one layer for all of its calls
            calls = [s.name for s in decision.sites if s.name.split("#")[0] == site.split("#")[0]]
        alone = kerasnorm.swap_norms(source, target, few, sites=calls, damping=0.0)
        # in a second call of the site, the input would be another one than the source's
        tolerance = 0.1 if name == "nested" or len(calls) > 1 else 1e-2
        expected = loss.of(graph_of(alone.model)) / information(name, source, judged)
        np.testing.assert_allclose(received, expected, rtol=tolerance, atol=1e-5)


def net_that_knows_lengths():
    """A classifier of how long its input is, behind three BatchNorm."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    y = layers.Dense(16, activation="relu")(inputs)
    for number in range(3):
        y = layers.BatchNormalization(name=f"bn_{number}")(layers.Dense(16)(y))
        y = layers.ReLU()(y)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(y))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 8))
    length = np.exp(rng.uniform(-2, 2, size=(1500, 1)))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True) * length).astype("float32")
    y = np.digitize(length[:, 0], [0.4, 2.5])
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, epochs=30, verbose=0)
    return model, x


@pytest.fixture(scope="module")
def lengths():
    return net_that_knows_lengths()


@pytest.mark.parametrize(
    ("losses", "others", "most"),
    [
        ({"a": 0.01, "b": 0.5, "c": 0.005}, False, ["b"]),
        ({"a": 0.012, "b": 0.011, "c": 0.013}, True, ["c"]),  # none is large, but all together are
        ({"a": 0.01, "b": 0.01}, False, []),
        ({"a": 0.5, "b": 0.2, "c": 0.3}, False, ["c", "a"]),  # one stays
        ({"a": 0.5, "b": 0.2, "c": 0.3}, True, ["b", "c", "a"]),
        ({"a": 0.0, "b": np.inf}, False, ["b"]),
        ({}, True, []),
    ],
)
def test_the_most_sensitive_go_until_the_rest_is_allowed(losses, others, most, monkeypatch):
    monkeypatch.setattr(sensitivity, "ALLOWED", 0.03)
    assert sensitivity._most_sensitive(losses, others) == most


@pytest.mark.parametrize("damping", [0.0, "auto"])
def test_a_cosine_norm_that_loses_the_answer_becomes_weight_norm(lengths, damping, closed_form):
    source, x = lengths
    swap = kerasnorm.swap_norms(source, "cosine", x[:400], damping=damping)
    named = kerasnorm.swap_norms(source, "cosine", x[:400], damping=damping, sites=every_site)
    assert {site.verdict for site in named.report.sites} == {"calibrated"}
    harmed = [site for site in swap.report.sites if site.becomes == "WeightNorm(Dense)"]
    if damping == 0.0:
        assert harmed
        answers = source.predict(x[400:], verbose=0).argmax(1)
        same, same_named = (
            np.mean(s.model.predict(x[400:], verbose=0).argmax(1) == answers) for s in (swap, named)
        )
        assert same > same_named + 0.05
    for site in harmed:
        assert (site.verdict, site.target) == ("exact", "cosine")
        assert "by itself it moves the answers by" in site.reason
        assert "name it in `sites` for cosine norm all the same" in site.reason
        assert f"may by no more than {sensitivity.ALLOWED:.2g}" in site.reason


def test_one_site_stays_in_any_case(lengths, monkeypatch, all_run, closed_form):
    source, x = lengths
    monkeypatch.setattr(sensitivity, "ALLOWED", 0.0)
    _, losses = losses_of(source, "cosine", x[:ROWS])
    swap = kerasnorm.swap_norms(source, "cosine", x[:ROWS], damping=0.0)
    stays = [site.name for site in swap.report.sites if site.verdict == "calibrated"]
    assert len(stays) == 1
    assert losses[stays[0]] <= np.median(list(losses.values()))
    assert kerasnorm.inspect_norms(swap.model).sites == []


@pytest.mark.parametrize(
    "options", [{"sites": every_site}, {"to": {"bn_0": "cosine", "bn_1": "cosine"}}]
)
def test_what_is_named_is_not_judged(options, lengths, monkeypatch, closed_form):
    source, x = lengths
    monkeypatch.setattr(sensitivity, "sensitivity", lambda *_, **__: pytest.fail("judged"))
    options = {"to": "cosine", **options}
    swap = kerasnorm.swap_norms(source, data=x[:200], damping=0.0, **options)
    asked = [site for site in swap.report.sites if site.target == "cosine"]
    assert {site.verdict for site in asked} == {"calibrated"}


@pytest.mark.parametrize(("rows", "judged"), [(95, False), (96, True)])
def test_few_samples_judge_nothing(rows, judged, lengths, closed_form):
    source, x = lengths
    swap = kerasnorm.swap_norms(source, "cosine", x[:rows], damping=0.0)
    reasons = [site.reason for site in swap.report.sites]
    assert any("it moves the answers by" in reason for reason in reasons) == judged


def test_no_sample_of_the_report_judges(lengths, monkeypatch, closed_form):
    source, x = lengths
    seen = []
    losses = sensitivity._SideBySide.losses

    def watched(self, sites, parts):
        seen.extend(arrays[0] for arrays in parts)
        return losses(self, sites, parts)

    monkeypatch.setattr(sensitivity._SideBySide, "losses", watched)
    kerasnorm.swap_norms(source, "cosine", x[:400], damping=0.0)
    rows = {row.tobytes() for row in np.concatenate(seen)}
    reported = {row.tobytes() for row in x[9:400:10]}
    assert len(rows) >= 100
    assert not rows & reported


def test_a_stream_is_read_once(lengths, closed_form):
    source, x = lengths
    read = []

    def stream():
        for start in range(0, 600, 30):
            read.append(start)
            yield x[start : start + 30]

    swap = kerasnorm.swap_norms(source, "cosine", stream(), damping=0.0)
    whole = kerasnorm.swap_norms(source, "cosine", x[:600], damping=0.0, batch_size=30)
    assert read == list(range(0, 600, 30))
    assert swap.report.agreement.samples == 60
    assert swap.report.to_dict() == whole.report.to_dict()
    for a, b in zip(swap.model.variables, whole.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_large_models_are_judged_where_they_keep_least(lengths, monkeypatch, all_run):
    source, x = lengths
    decision, all_of_them = losses_of(source, "cosine", x[:ROWS])
    assert len(all_of_them) == 3
    each = sensitivity.multiplications(decision.model_graphs, [x[:20]]) / 2
    monkeypatch.setattr(sensitivity, "_WORK", 1.5 * each * sensitivity._LEAST_TO_RUN)
    _, some = losses_of(source, "cosine", x[:ROWS])
    assert len(some) == 1


def test_the_size_of_the_batches_does_not_matter(lengths, closed_form):
    source, x = lengths
    records = [
        kerasnorm.swap_norms(
            source, "cosine", x[:450], damping=0.0, batch_size=size
        ).report.to_dict()["sites"]
        for size in (1, 32, 200, 450)
    ]
    became = [[(site["name"], site["becomes"]) for site in sites] for sites in records]
    assert became == [became[0]] * 4
    assert ("bn_0", "WeightNorm(Dense)") in became[0]


class Code(keras.Model):
    """The same net, with code of its own."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(16, activation="relu")
        self.dense = [layers.Dense(16) for _ in range(3)]
        self.norms = [layers.BatchNormalization(name=f"bn_{n}") for n in range(3)]
        self.last = layers.Dense(3, activation="softmax")

    def call(self, x):
        y = self.first(x)
        for dense, norm in zip(self.dense, self.norms, strict=True):
            y = keras.ops.relu(norm(dense(y)))
        return self.last(y)


@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
def test_code_is_as_sensitive_as_a_graph(target, lengths, all_run):
    source, x = lengths
    model = Code()
    model(x[:2])
    parts = [layer for layer in source.layers if layer.weights]
    own = [model.first, *(p for pair in zip(model.dense, model.norms, strict=True) for p in pair)]
    for a, b in zip([*own, model.last], parts, strict=True):
        a.set_weights(b.get_weights())
    _, expected = losses_of(source, target, x[:ROWS])
    _, received = losses_of(model, target, x[:ROWS])
    assert len(received) == 3
    if target == "cosine":  # a layer norm in code is of the raw activation
        np.testing.assert_allclose(list(received.values()), list(expected.values()), rtol=1e-3)
    assert all(loss > 0 for loss in received.values())


def test_calls_of_a_shared_layer_become_the_same(closed_form, all_run, monkeypatch):
    monkeypatch.setattr(sensitivity, "ALLOWED", 1e-9)
    keras.utils.set_random_seed(0)
    inputs, norm = keras.Input((6,)), layers.BatchNormalization(name="shared")
    y = layers.Activation("tanh")(layers.Dense(6)(inputs))
    for _ in range(2):  # no linear layer is in front
        y = layers.Activation("tanh")(norm(layers.Activation("tanh")(y)))
    y = layers.BatchNormalization(name="last")(layers.Dense(6)(y))
    source = keras.Model(inputs, layers.ReLU()(y))
    data = batch(source, rows=ROWS)
    randomize(source, data)
    sites = kerasnorm.swap_norms(source, "layer", data).report.sites
    assert [site.name for site in sites] == ["shared", "shared#2", "last"]
    assert sites[0].becomes == sites[1].becomes
    assert {"LayerNorm", "WeightNorm(Dense)"} & {sites[2].becomes}
    assert sites[0].becomes.startswith("WeightNorm") != sites[2].becomes.startswith("WeightNorm")


class CalledTwice(keras.Model):
    """A BatchNorm that is called twice in code."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm = layers.Dense(8), layers.BatchNormalization(name="twice")
        self.more, self.other = layers.Dense(8), layers.BatchNormalization(name="once")

    def call(self, x):
        y = keras.ops.relu(self.norm(keras.ops.relu(self.norm(self.dense(x)))))
        return self.other(self.more(y))


def test_a_sensitive_site_that_cannot_change_is_warned_of(closed_form, all_run, monkeypatch):
    monkeypatch.setattr(sensitivity, "ALLOWED", 1e-9)
    source = CalledTwice()
    data = np.random.default_rng(0).normal(size=(ROWS, 5)).astype("float32")
    source(data)
    randomize(source, data)
    with pytest.warns(kerasnorm.errors.FidelityWarning, match="stays LayerNorm, since it cannot"):
        swap = kerasnorm.swap_norms(source, "layer", data)
    assert any("by itself it moves the answers" in doubt for doubt in swap.report.warnings)


@pytest.mark.parametrize(
    "target", ["cosine", *(pytest.param(t, marks=pytest.mark.slow) for t in ("layer", "group"))]
)
def test_batches_of_unlike_shapes(target, closed_form):
    keras.utils.set_random_seed(0)
    inputs = y = keras.Input((None, None, 3))
    for _ in range(3):
        y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3)(y)))
    source = keras.Model(inputs, y)
    rng = np.random.default_rng(0)
    sizes = [8, 10, 12] * 5
    batches = [rng.normal(size=(24, n, n, 3)).astype("float32") for n in sizes]
    randomize(source, batches[0])
    swap = kerasnorm.swap_norms(source, target, iter(batches))
    assert len(swap.report.sites) == 3
    assert all(np.isfinite(swap.model(batch)).all() for batch in batches[:3])


@pytest.mark.parametrize("spoiled", [0, 1])
def test_an_output_that_is_not_a_number_is_infinitely_far(spoiled, lengths, monkeypatch, all_run):
    source, x = lengths
    ends = [source.output, source.layers[-2].output]
    model = keras.Model(source.input, ends)
    logits = sensitivity._SideBySide._logits
    calls = []

    def spoil(self, values):
        found = logits(self, values)
        calls.append(found)
        if len(calls) % 4 != 1:  # the first of each part is the source's own
            found[spoiled] = np.full_like(found[spoiled], np.nan)
        return found

    monkeypatch.setattr(sensitivity._SideBySide, "_logits", spoil)
    _, losses = losses_of(model, "cosine", x[:ROWS])
    assert list(losses.values()) == [np.inf] * 3


def test_no_more_is_run_at_once_than_fits_into_memory(lengths, monkeypatch, all_run):
    source, x = lengths
    sizes = []
    run = sensitivity.Steps.run

    def watched(self, arrays, **options):
        arrays = list(arrays)
        sizes.append(len(arrays[0]))
        return run(self, arrays, **options)

    monkeypatch.setattr(sensitivity.Steps, "run", watched)
    monkeypatch.setattr("kerasnorm.graph.execute._MOST_AT_ONCE", 32)
    decision = decide(graphs_of(source), "cosine", None)
    parts = [[x[i : i + 20]] for i in range(0, ROWS, 20)]
    # 16 values at a time in ten places, 4 bytes each, in both models
    wide, narrow = (
        sensitivity.sensitivity(decision, parts, (0.0,), seed=0, memory_budget=budget)
        for budget in (10**9, 8000)
    )
    assert max(sizes) == 32
    assert 1 < min(size for size in sizes if size != 1) < 8
    np.testing.assert_allclose(list(wide.values()), list(narrow.values()), rtol=1e-4)


def rare_positives():
    """A net of forty yes-or-no answers, of which one in two hundred is yes."""
    keras.utils.set_random_seed(0)
    inputs = y = keras.Input((8, 8, 3))
    for _ in range(4):
        y = layers.Conv2D(6, 3, padding="same")(y)
        y = layers.ReLU()(layers.BatchNormalization()(y))
    z = layers.Dense(40, name="logits")(layers.GlobalAveragePooling2D()(y))
    model = keras.Model(inputs, layers.Activation("sigmoid")(z))
    x = np.random.default_rng(0).normal(size=(1000, 8, 8, 3)).astype("float32")
    randomize(model, x)
    head = model.get_layer("logits")
    logits = np.asarray(keras.Model(inputs, z)(x))
    head.kernel.assign(head.kernel * 6 / logits.std(0))
    logits = np.asarray(keras.Model(inputs, z)(x))
    head.bias.assign(head.bias - np.quantile(logits, 0.995, axis=0))
    return model, x


@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
def test_rare_answers_count(target, closed_form):
    source, x = rare_positives()
    swap = kerasnorm.swap_norms(source, target, x[:200])
    kept = [site for site in swap.report.sites if not site.becomes.startswith("WeightNorm")]
    assert len(kept) == 1


def test_a_distance_is_a_share_of_what_the_answers_say():
    rng = np.random.default_rng(0)
    t = rng.normal(-6, 1, size=(50, 4))
    p, q = (1 / (1 + np.exp(-v)) for v in (t, t + 0.3))

    def divergence(p, q):
        return np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))

    distance = Distance(Head("sigmoid"), t)
    np.testing.assert_allclose(distance.of(t + 0.3), divergence(p, q), rtol=1e-4)
    np.testing.assert_allclose(distance.information, divergence(p, p.mean(0)), rtol=1e-3)
    assert Distance(Head("linear"), t).information == 1.0
    assert Distance(Head("softmax"), 20 * rng.normal(size=(50, 9))).information == 1.0
    assert Distance(Head("softmax"), np.zeros((50, 9))).information == 1.0


def test_samples_for_which_the_source_is_not_finite_do_not_count():
    t = np.random.default_rng(0).normal(size=(20, 3))
    spoiled = t.copy()
    spoiled[3] = -np.inf
    distance = Distance(Head("linear"), spoiled)
    assert distance.of(spoiled) == 0.0
    others = np.delete(np.arange(20), 3)
    expected = np.mean((0.1 * t[others]) ** 2) / np.mean(t[others].var(0))
    np.testing.assert_allclose(distance.of(1.1 * t), expected, rtol=1e-4)
    assert distance.of(np.full_like(t, np.nan)) == np.inf
    assert Distance(Head("linear"), np.full((5, 2), np.nan)).of(np.ones((5, 2))) == 0.0


@pytest.mark.parametrize(
    "target", ["cosine", *(pytest.param(t, marks=pytest.mark.slow) for t in ("layer", "group"))]
)
def test_sites_that_cannot_be_fitted_go_first(target, closed_form):
    keras.utils.set_random_seed(0)
    inside = y = keras.Input((6, 6, 3))
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3)(y)))
    each = keras.Model(inside, layers.Flatten()(y))
    inputs = keras.Input((4, 6, 6, 3))
    y = layers.TimeDistributed(each)(inputs)
    for number in range(2):
        y = layers.BatchNormalization(name=f"bn_{number}")(layers.Dense(6)(y))
    source = keras.Model(inputs, layers.Dense(2)(layers.ReLU()(y)))
    data = batch(source, rows=150)
    randomize(source, data)
    swap = kerasnorm.swap_norms(source, target, data)
    inner = swap.report.sites[1]
    assert inner.becomes.startswith("WeightNorm")
    assert "cannot be fitted where it is" in inner.reason
    assert swap.report.agreement is None or swap.report.agreement.fit > 0.8
    if target == "cosine":
        with pytest.warns(kerasnorm.errors.FidelityWarning, match="was not fitted: it is inside"):
            kerasnorm.swap_norms(source, target, data, sites=every_site)


@pytest.mark.parametrize(
    "target", ["layer", *(pytest.param(t, marks=pytest.mark.slow) for t in ("cosine", "group"))]
)
@pytest.mark.parametrize("end", ["products of samples", "one number"])
def test_outputs_whose_shape_goes_with_the_batch(end, target, closed_form):
    source = tiny_models.residual()
    y = source.output
    more = keras.ops.mean(y) if end == "one number" else y @ keras.ops.transpose(y)
    model = keras.Model(source.input, [y, more])
    data = batch(source, rows=170)
    randomize(source, data)
    swap = kerasnorm.swap_norms(model, target, data)
    assert all(site.reason or site.fit is not None for site in swap.report.sites)


@pytest.mark.parametrize("options", [{}, {"time_budget": 1e4}])
def test_empty_batches_do_not_count(options, closed_form):
    source = tiny_models.residual()
    data = batch(source, rows=160)
    randomize(source, data)
    parts = [data[:0], data[:80], data[:0], data[80:], data[:0]]
    swap = kerasnorm.swap_norms(source, "layer", iter(parts), **options)
    assert swap.report.agreement.samples == 16
