"""M2 against what it must be: a conditional VAE where y is shown, a sum over classes where it is not, a closed form without z."""

import math

import pytest
import torch

import pofx
from pofx.domain import Domain, Variable
from pofx.errors import DataError, OptionError, PofxError
from pofx.models.latent.semi import M2Config
from pofx.types import Kind

NAN = math.nan
TABLE = Domain(
    (
        Variable("a", "real"),
        Variable("y", "categorical", levels=("r", "g", "b")),
        Variable("n", "count", lower=0.0, upper=4.0),
        Variable("s", "binary", levels=("f", "m")),
    )
)
LABEL, REST = 1, [0, 2, 3]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n=60, shown=1.0):
    g = generator(1)
    y = torch.randint(0, 3, (n,), generator=g).double()
    a = 2 * y + torch.randn(n, generator=g, dtype=torch.float64)
    x = torch.stack((a, y, (y + torch.randint(0, 3, (n,), generator=g)).clamp(0, 4), (a > 2).double()), 1)
    x[torch.rand(n, generator=g) >= shown, LABEL] = NAN
    return x


def untrained(domain=TABLE, **options):
    """Every number of the networks at random, so that nothing holds by accident."""
    torch.manual_seed(3)
    model = M2Config(**{"label": "y", "latents": 2, "widths": (8,), "draws": 8, "dropout": 0.0, **options}).build(domain)
    model.initialise(rows())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.requires_grad_(False).eval()


def without_z(**options):
    """A decoder that does not look at z, and q(z | x, y) = p(z): every bound is log p itself."""
    model = untrained(**options)
    decoder, encoder = model.inner.generative.decoder, model.inner.inference
    decoder.trunk[0].weight[:, :2] = 0.0
    encoder.nets[0].rest[-1].weight.zero_()
    encoder.nets[0].rest[-1].bias.zero_()
    return model


def closed(model, x):
    """log p(y = k) + log p(x | y = k) of that model, (N, 3)."""
    columns = model.inner.generative.decoder.columns
    each = [columns.log_prob(model.inner.generative.parameters_at((torch.zeros(1, 2),), c[None]), x[:, REST]).sum(-1) for c in torch.eye(3)]
    return torch.stack(each, 1) + model.logits.log_softmax(0)


# -- y is shown ----------------------------------------------------------------------------------------------------------


def test_with_y_shown_m2_is_p_of_y_times_the_conditional_vae():
    model, x = untrained(), rows()
    y = x[:, LABEL].long()
    log_p_y, c = model.logits.log_softmax(0)[y], torch.eye(3)[y]
    inner = model.inner.log_prob(x[:, REST], c, generator=generator())
    torch.testing.assert_close(model.log_prob(x, generator=generator()), inner + log_p_y, rtol=0, atol=0)
    bound = -model.inner.loss(x[:, REST], c, generator=generator())
    torch.testing.assert_close(-model.loss(x, generator=generator()), bound + log_p_y)


def taught(model, x):
    """What labels add to the loss of each row, and log q(y | x) of the rows that show y."""
    model.initialise(x)
    model.logits.normal_(generator=generator(5))
    model.classifier.net.last.weight.normal_(generator=generator(6))
    known = ~x[:, LABEL].isnan()
    log_q = model.classifier(x[:, REST])[known, x[known, LABEL].long()]
    judged = model.eval().loss(x, generator=generator())
    return model.train().loss(x, generator=generator()) - judged, log_q


def test_labels_teach_the_classifier_at_every_row_whether_it_shows_them_or_not():
    added, log_q = taught(untrained(alpha=0.3), rows(200, shown=0.2))
    torch.testing.assert_close(added, (-0.3 * log_q.mean()).expand(200))


def test_some_labels_at_a_time_teach_what_all_do(monkeypatch):
    model, x = untrained(alpha=0.3), rows(200, shown=0.2)
    _, log_q = taught(model, x)
    monkeypatch.setattr("pofx.models.latent.semi.TAUGHT", 5)
    source = generator()
    each = torch.stack([model._labels(source) for _ in range(2000)])
    assert each.std() > 0
    assert abs(each.mean() - log_q.mean()) < 5.5 * each.std() / math.sqrt(len(each))


def test_each_class_scales_z_by_itself():
    """An affine map of (z, y) would give all classes one slope."""
    model = untrained()
    z = torch.tensor([[1.0, -0.5]])
    h = [model.inner.generative.decoder.trunk[0](torch.cat((s * z, k[None]), 1)) for k in torch.eye(3) for s in (0.0, 1.0)]
    slopes = torch.cat(h[1::2]) - torch.cat(h[::2])
    assert (slopes - slopes[0])[1:].abs().amax(1).min() > 1e-2


# -- y is not ------------------------------------------------------------------------------------------------------------


def test_a_hidden_y_is_summed_over_and_its_gradient_is_that_of_the_sum():
    """sum_y q(y | x) (log p(y) + ELBO(x | y) - log q(y | x)), one class after the other, z drawn alike."""
    model, x = without_z(), rows(shown=0.0)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    log_q = model.classifier(x[:, REST])
    by_hand = -(log_q.exp() * (closed(model, x) - log_q)).sum(1)
    loss = model.loss(x, generator=generator())
    torch.testing.assert_close(loss, by_hand)
    # Two layers whose inputs differ: q, which the closed form does without, and the first of the decoder, which sees z drawn or 0.
    apart = ("inner.inference", "inner.generative.decoder.trunk.0.weight")
    parts = [p for name, p in model.named_parameters() if not name.startswith(apart)]
    ours, theirs = (torch.autograd.grad(value.sum(), parts, retain_graph=True, allow_unused=True) for value in (loss, by_hand))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_without_z_log_p_is_the_closed_mixture():
    model, x = without_z(), rows(shown=0.5)
    joint = closed(model, x)
    y = x[:, LABEL]
    expected = torch.where(y.isnan(), joint.logsumexp(1), joint.gather(1, y.nan_to_num(0).long()[:, None])[:, 0])
    value, error = model.log_prob_and_error(x, generator=generator())
    torch.testing.assert_close(value, expected)
    assert error.max() < 1e-6
    x[:, 2] = NAN  # and with a cell of x missing
    missing = closed(model, x).logsumexp(1)
    x[:, LABEL] = NAN
    torch.testing.assert_close(model.log_prob(x, generator=generator()), missing)


def test_the_bound_lies_below_log_p_and_is_tight_where_q_is_p():
    model, x = without_z(), rows(shown=0.0)
    log_p = closed(model, x).logsumexp(1)
    assert (-model.loss(x, generator=generator()) <= log_p + 1e-9).all()
    model.classifier.forward = lambda rest: closed(model, x).log_softmax(1)
    torch.testing.assert_close(-model.loss(x, generator=generator()), log_p)


def test_p_of_y_given_x_is_bayes_rule():
    model, x = without_z(), rows(20, shown=0.0)
    p = closed(model, x).softmax(1)
    filled = model.impute(x, generator=generator())
    assert torch.equal(filled[:, LABEL], p.argmax(1).double())
    for i in range(3):
        by_level = model.conditional(x[i]).log_prob(torch.arange(3.0, dtype=torch.float64)[:, None])
        torch.testing.assert_close(by_level, p[i].log())


def test_completions_draw_y_from_its_posterior():
    model = without_z()
    x = rows(1, shown=0.0).expand(4000, -1)
    p = closed(model, x[:1]).softmax(1)[0]
    drawn = model.complete(x, generator=generator())[:, LABEL].long().bincount(minlength=3) / 4000
    assert ((drawn - p).abs() < 5.5 * (p * (1 - p) / 4000).sqrt() + 1e-12).all()  # fails by chance in 1e-7 of runs


def test_classify_is_q_for_the_label_and_bayes_for_another_column():
    model, x = without_z(), rows(20)
    torch.testing.assert_close(model.classify(x, LABEL), model.classifier(x[:, REST]).exp())
    each = [closed(model, x.index_fill(1, torch.tensor(3), k)).gather(1, x[:, LABEL].long()[:, None])[:, 0] for k in (0.0, 1.0)]
    torch.testing.assert_close(model.classify(x, 3, generator=generator()), torch.stack(each, 1).softmax(1))


def test_marginals_keep_the_sum_over_classes():
    model, x = without_z(), rows(shown=0.0)
    joint = closed(model, torch.where(torch.tensor([False, True, True, False]), NAN, x))
    torch.testing.assert_close(model.marginal([3, 0]).log_prob(x[:, [3, 0]], generator=generator()), joint.logsumexp(1))
    y = torch.full((len(x),), 2.0, dtype=torch.float64)
    with_y = torch.stack((x[:, 3], y, x[:, 0]), 1)
    torch.testing.assert_close(model.marginal([3, LABEL, 0]).log_prob(with_y, generator=generator()), joint[:, 2])
    torch.testing.assert_close(model.marginal([LABEL]).log_prob(y[:3, None]), model.logits.log_softmax(0)[2].expand(3))


def test_a_class_that_is_none_has_no_density():
    x = rows(3)
    x[:, LABEL] = torch.tensor([3.0, 0.5, -1.0])
    assert (untrained().log_prob(x, generator=generator()) == -math.inf).all()


def test_codes_carry_the_class():
    """Style transfer: the same z beside another y is decoded under that y."""
    model, x = untrained(), rows(10)
    z = model.encode(x)
    assert z.shape == (10, 2 + 3)
    assert torch.equal(z[:, 2:], torch.eye(3).double()[x[:, LABEL].long()].to(z))
    other = torch.cat((z[:, :2], torch.eye(3)[[2] * 10].to(z)), 1)
    decoded = model.decode(other)
    assert (decoded[:, LABEL] == 2).all()
    torch.testing.assert_close(decoded[:, REST], model.inner.decode(z[:, :2], torch.eye(3)[[2] * 10].to(z)))


def test_without_levels_m2_is_its_vae():
    domain, x = Domain.real(3), torch.randn(20, 3, generator=generator())
    torch.manual_seed(0)
    model = M2Config(latents=2, widths=(8,), dropout=0.0).build(domain).eval()
    model.initialise(x)
    one = torch.ones(20, 1)
    torch.testing.assert_close(model.log_prob(x, generator=generator()), model.inner.log_prob(x, one, generator=generator()))
    torch.testing.assert_close(model.loss(x, generator=generator()), model.inner.loss(x, one, generator=generator()))


# -- as a user has it ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def penguins():
    """Every fifth label."""
    table = pofx.load("penguins")
    frame = table.train.copy()
    frame.loc[frame.index % 5 != 0, "species"] = None
    options = {"label": "species", "latents": 2, "widths": (32,), "draws": 8, "max_epochs": 40, "learning_rate": 0.01}
    return pofx.fit(frame, "m2", schema=table.domain, holdout=table.holdout, **options)


def test_few_labels_are_enough_for_penguins(penguins):
    test = pofx.load("penguins").test
    known = test[test.species.notna()]
    answer = penguins.classify(known, "species")
    levels = penguins.domain["species"].levels
    right = [levels[k] == name for k, name in zip(answer.value.argmax(1), known.species, strict=True)]
    assert answer.kind is Kind.ESTIMATE
    assert sum(right) / len(right) > 0.9
    assert list(penguins.impute(known.assign(species=None)).species) != [None] * len(known)


def test_a_file_opens_to_the_same_classes(penguins, tmp_path):
    penguins.save(tmp_path / "p.safetensors")
    test = pofx.load("penguins").test
    q = pofx.open(tmp_path / "p.safetensors")
    assert (q.classify(test, "species").value == penguins.classify(test, "species").value).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label": "z"}, "there is no column 'z'"),
        ({"label": "a"}, "the label of m2 is a column of levels, but 'a' is real"),
        ({"alpha": -1.0}, "greater than or equal to 0"),
    ],
)
def test_labels_that_can_not_be_are_refused(options, sentence):
    with pytest.raises((PofxError, ValueError), match=sentence):
        M2Config(**options).build(TABLE)


def test_a_label_that_stands_alone_is_refused():
    with pytest.raises(OptionError, match="the label 'y' stands alone"):
        M2Config(label="y").build(TABLE.select([LABEL]))


def test_a_label_that_no_row_shows_is_refused():
    with pytest.raises(DataError, match="no training row shows 'y'"):
        M2Config(label="y", widths=(8,)).build(TABLE).initialise(rows(shown=0.0))


def test_a_level_never_seen_in_training_is_refused(penguins):
    row = pofx.load("penguins").test[:1].assign(species="Emperor")
    with pytest.raises(DataError, match="Emperor"):
        penguins.log_prob(row)
