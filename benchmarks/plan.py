"""The tables of docs/plan.md: SD1.5, SDXL and SD3.5 on TPU slices, planned by `dmpo-jax plan`.

    python benchmarks/plan.py --out benchmarks/plans              # all rows, an hour or more
    python benchmarks/plan.py --out benchmarks/plans --only v5e-16

Each row is compiled once and saved as a file in --out; a second start compiles only missing rows.
The table is printed as markdown. Needs libtpu (pip install 'dmpo-jax[tpu]') and 18 GB of memory.
"""

import argparse
import datetime
import json
import pathlib
import re
import shlex
import subprocess
import sys

GIB = 2**30
SLICES = ("v5e-16", "v5e-64", "v5p-32", "v6e-16")
GROWTH = ("v5e-4", "v5e-16", "v5e-64", "v5e-256")
SEVERAL = ("2xv5e-16", "8xv5e-16", "4xv5p-64")
COMMON = "--inputs latents_and_embeddings --config.ema_decay=0.999"
LORA = "--config.lora.rank=16 --config.lora.alpha=16.0"
SD15 = "--config configs/sd15_dmpo.py --model sd15 --pairs-per-chip 8"
SD35 = "--model sd35_medium --size 512"
SETTINGS = {
  "SD1.5 full": f"{SD15} {COMMON}",
  "SD1.5 LoRA": f"{SD15} {LORA} {COMMON}",
  "SDXL full": f"--config configs/sdxl_dmpo.py --model sdxl --pairs-per-chip 2 {COMMON}",
  "SDXL LoRA": f"--config configs/sdxl_dmpo_lora.py --model sdxl --pairs-per-chip 2 {COMMON}",
  "SD3.5 full": f"--config configs/sd35_dmpo.py {SD35} --pairs-per-chip 2 {COMMON}",
  "SD3.5 LoRA": f"--config configs/sd35_dmpo_lora.py {SD35} --pairs-per-chip 2 {COMMON}",
}


def rows() -> dict[str, str]:
  """Name of a row -> arguments of `dmpo-jax plan`, the most important rows first."""
  settings = [(setting, name) for name in SLICES for setting in SETTINGS]
  settings += [(setting, name) for name in GROWTH for setting in SETTINGS if "full" in setting]
  settings.append(("SD3.5 LoRA", "v5e-1"))
  settings += [("SD1.5 full", name) for name in SEVERAL]
  result = {}
  for setting, name in settings:
    fsdp = min(16, int(name.rsplit("-")[1]) // (2 if "v5p" in name else 1))
    arguments = f"{SETTINGS[setting]} --topology {name} --config.mesh.fsdp={fsdp}"
    result.setdefault(f"{setting} {name}", arguments)
  return result


def line(name: str, plan: dict, arguments: str) -> str:
  """Returns a row of the table in markdown."""
  total, available = (plan[key] / GIB for key in ("total", "available"))
  sizes = plan["bytes"]
  state = sum(sizes[key] for key in ("parameters", "optimizer", "ema")) / GIB
  cells = [
    name,
    f"{plan['examples_per_chip']:g}",
    f"{state:.2f}",
    f"{sizes['reference'] / GIB:.2f}",
  ]
  cells += [f"{sizes['frozen'] / GIB:.2f}", f"{plan.get('temporaries', 0) / GIB:.2f}"]
  cells += [f"{total:.2f} of {available:.2f}", "yes" if plan["fits"] else "**no**"]
  if plan["fits"]:
    seconds, share = plan["seconds"], plan["mfu"]
    sent = sum(each["bytes"] for each in plan["collectives"].values()) / 1e9
    compiler = f"{share['compiler']:.0%}" if share["compiler"] else "none"
    cells += [f"{plan['model_flops'] / 1e12:.1f}", f"{sent:.1f}", f"{seconds['step']:.3f}"]
    cells += [f"{share['step']:.0%}", f"{share['step_exposed']:.0%}", compiler]
  else:
    cells += ["-"] * 6
  return f"| {' | '.join(cells)} |"


def slices_line(name: str, plan: dict) -> str:
  """Returns a row of the table of several slices in markdown."""
  seconds, share = plan["seconds"], plan["mfu"]
  sent = [
    sum(each["bytes"] for each in plan[key].values()) / 1e9
    for key in ("collectives", "between_slices")
  ]
  cells = [name, str(plan["chips"]), " x ".join(map(str, plan["mesh"].values()))]
  cells += [f"{plan['total'] / GIB:.2f}", *(f"{size:.2f}" for size in sent)]
  cells += [f"{seconds[key]:.3f}" for key in ("collectives", "between_slices", "step")]
  cells += [f"{share[key]:.0%}" for key in ("step", "step_exposed")]
  return f"| {' | '.join(cells)} |"


SLICES_HEADER = """\
| setting, slices | chips | data x fsdp | GiB per chip | GB sent in a slice | GB sent between \
| s in a slice | s between | s/step | MFU | none hidden |
|---|---|---|---|---|---|---|---|---|---|---|"""
HEADER = """\
| setting, slice | pairs/chip | state | reference | frozen | activations | GiB in all | fits \
| model TFLOP | GB sent | s/step | MFU | none hidden | compiler's own |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
  """Plans missing rows and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of plans")
  parser.add_argument("--only", default="", help="regular expression for names of rows")
  parser.add_argument("--print", action="store_true", help="print existing rows, compile nothing")
  options = parser.parse_args()
  options.out.mkdir(parents=True, exist_ok=True)
  table, slices, commands = [HEADER], [SLICES_HEADER], []
  for name, arguments in rows().items():
    if not re.search(options.only, name):
      continue
    file = options.out / (re.sub(r"[^\w.-]+", "-", name) + ".json")
    if not file.exists() and not options.print:
      command = [sys.executable, "-m", "dmpo_jax.commands.main", "plan", f"--json={file}"]
      print(f"{name} ...", file=sys.stderr, flush=True)
      subprocess.run([*command, *shlex.split(arguments)], stdout=sys.stderr, check=False)
    if file.exists():
      plan = json.loads(file.read_text())
      table.append(line(name, plan, arguments))
      if plan["fits"] and "slices" in plan:  # not in the plans of an older version
        slices.append(slices_line(name, plan))
      commands.append(f"{name}: dmpo-jax plan {arguments}")
  print("\n".join([*table, "", *slices]))
  versions = plan["versions"] if commands else {}
  print(f"\n{datetime.date.today()}, {versions}\n\n" + "\n".join(commands))


if __name__ == "__main__":
  main()
