"""The command line: checks of layers, exit codes, and what is said when an extra is not installed."""

import sys

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from torchimplicit import cli

LAYERS = """
import torch
import torchimplicit as ti

torch.manual_seed(0)
W = torch.randn(6, 6, dtype=torch.float64) / 6**0.5
x = torch.randn(4, 6, dtype=torch.float64)
zeros = torch.zeros(4, 6, dtype=torch.float64)


class Cell(torch.nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.W = torch.nn.Parameter(gain * W)

    def forward(self, z, x):
        return torch.tanh(z @ self.W.mT + x)


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.tanh()

    @staticmethod
    def backward(ctx, v):
        return 1.3 * v * (1 - ctx.saved_tensors[0].tanh() ** 2)


def good():
    return ti.nn.FixedPoint(Cell(0.4)), x


def expanding():
    return Cell(4.0), zeros, (x / 100,), "fixed_point", {"batch_ndim": 1, "solver": "picard"}


def wrong():
    return (lambda z, x: Wrong.apply(0.4 * z @ W.mT + x)), zeros, (x,)


def scripted():
    cell = torch.jit.trace(torch.nn.Linear(6, 6, dtype=torch.float64), zeros)
    return (lambda z: 0.3 * cell(z)), zeros


def nonsense():
    return 3


number = 5


def makes_no_layer():
    return {}["nothing"]


def raises():
    def f(z):
        raise RuntimeError("shapes [red]3[/red] and 4\\ndo not fit :smile:")

    return f, zeros


def of_no_kind():
    return torch.cos, zeros, (), "equation"


def bare():
    return torch.add, zeros, x


def equation():
    return (lambda z, x: z + z**3 / 3 - x), zeros, (x,), "root"
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text(LAYERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.delitem(sys.modules, "my_layers", raising=False)

    def run(*names):
        return CliRunner().invoke(cli.app(), ["check", *(f"my_layers:{name}" for name in names)])

    yield run
    sys.modules.pop("my_layers", None)


def test_good_layers_pass(check):
    result = check("good", "equation")
    assert result.exit_code == 0, result.output
    assert result.output.count("all well") == 2
    assert "spectral radius" in result.output


def test_a_layer_that_does_not_contract_fails_under_plain_steps(check):
    result = check("good", "expanding")
    assert result.exit_code == 1
    assert "not below 1" in result.output
    assert "did not converge" in result.output


def test_a_wrong_custom_gradient_fails(check):
    result = check("wrong")
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert "custom autograd.Function" in text
    assert "implicit gradient" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_layer_whose_tensors_cannot_be_seen_fails_in_a_line(check):
    result = check("scripted", "good")
    assert result.exit_code == 1
    assert "TorchScript" in result.output
    assert "all well" in result.output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nonsense", "must return"),
        ("missing", "has no attribute 'missing'"),
        ("number", "expected a function that makes a layer; number is 5"),
        ("makes_no_layer", "KeyError: 'nothing' (my_layers.py, line"),
        ("raises", "RuntimeError: shapes [red]3[/red] and 4 do not fit :smile: (my_layers.py, line"),
        ("of_no_kind", "kind must be one of"),
        ("bare", "args must be a tuple"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(check, name, said):
    result = check(name)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert said in result.stderr
    assert result.stderr.startswith(f"my_layers:{name}: ")
    assert result.stderr.count("\n") == 1
    assert not result.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [("just_a_module", "MODULE:CALLABLE"), ("no_such_module:layer", "No module named 'no_such_module'")],
)
def test_a_name_of_nothing_is_one_line_on_stderr(name, said):
    result = CliRunner().invoke(cli.app(), ["check", name])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_says_what_a_factory_returns():
    result = CliRunner().invoke(cli.app(), ["check", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "(f, z0, args, kind)" in result.output


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [("typer", [], "cli"), ("sklearn", ["demo"], "demo"), ("matplotlib", ["demo", "--quick"], "demo")],
)
def test_an_absent_extra_is_named_in_one_line(monkeypatch, absent, arguments, extra):
    monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.setattr(sys, "argv", ["torchimplicit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    message = str(stopped.value)
    assert f"torchimplicit[{extra}]" in message
    assert absent in message
    assert "\n" not in message


def test_other_absent_modules_are_no_business_of_the_extras(monkeypatch):
    def app():
        raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(ModuleNotFoundError, match="elsewhere"):
        cli.main()
