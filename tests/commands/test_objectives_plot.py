"""`dmpo-jax objectives plot`."""

from PIL import Image

from dmpo_jax import losses
from dmpo_jax.commands.main import main
from dmpo_jax.commands.objectives_plot import axis_beta, configured
from dmpo_jax.configs import digits_dpo


def test_every_loss_has_the_settings_of_its_config():
  bound = configured()
  assert list(bound) == sorted(losses.LOSSES)
  assert all(loss.func is losses.LOSSES[name] for name, loss in bound.items())


def test_the_axis_has_the_beta_of_the_configured_dpo():
  assert axis_beta() == digits_dpo.get_config().loss.beta


def test_the_named_losses_are_plotted_into_the_file(tmp_path, capsys):
  out = tmp_path / "some.png"
  assert main(["objectives", "plot", "--out", str(out), "dmpo", "hinge"]) == 0
  assert capsys.readouterr().out == f"{out}\n"
  assert Image.open(out).format == "PNG"


def test_a_misspelt_loss_is_named_and_nothing_is_written(tmp_path, capsys):
  out = tmp_path / "some.png"
  assert main(["objectives", "plot", "--out", str(out), "dmop"]) == 2
  assert "unknown loss 'dmop'; did you mean 'dmpo'?" in capsys.readouterr().err
  assert not out.exists()


def test_without_plot_the_table_is_printed(capsys):
  assert main(["objectives"]) == 0
  assert set(losses.LOSSES) <= set(capsys.readouterr().out.split())
