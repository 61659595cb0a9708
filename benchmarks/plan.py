"""The tables of docs/plan.md: what SD1.5 and SDXL need on TPU slices, by `dmpo-jax plan`.

    python benchmarks/plan.py --out benchmarks/plans              # all rows, an hour or more
    python benchmarks/plan.py --out benchmarks/plans --only v5e-16

Each row is compiled once and kept as a file in --out: started again, the rest is done. The table is
printed as markdown from what is there. It needs libtpu (pip install 'dmpo-jax[tpu]') and 18 GB.
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
COMMON = "--inputs encoded --config.ema_decay=0.999"
LORA = "--config.lora.rank=16 --config.lora.alpha=16.0"
SD15 = "--config configs/sd15_dmpo.py --model sd15 --pairs-per-chip 8"
SETTINGS = {
  "SD1.5 full": f"{SD15} {COMMON}",
  "SD1.5 LoRA": f"{SD15} {LORA} {COMMON}",
  "SDXL full": f"--config configs/sdxl_dmpo.py --model sdxl --pairs-per-chip 2 {COMMON}",
  "SDXL LoRA": f"--config configs/sdxl_dmpo_lora.py --model sdxl --pairs-per-chip 2 {COMMON}",
}


def rows() -> dict[str, str]:
  """Name of a row -> the arguments of `dmpo-jax plan` that make it, the most asked-for first."""
  wanted = [(setting, name) for name in SLICES for setting in SETTINGS]
  wanted += [(setting, name) for name in GROWTH for setting in SETTINGS if "full" in setting]
  found = {}
  for setting, name in wanted:
    fsdp = min(16, int(name.rsplit("-")[1]) // (2 if name.startswith("v5p") else 1))
    arguments = f"{SETTINGS[setting]} --topology {name} --config.mesh.fsdp={fsdp}"
    found.setdefault(f"{setting} {name}", arguments)
  return found


def line(name: str, plan: dict, arguments: str) -> str:
  """A row of the table."""
  total, available = (plan[key] / GIB for key in ("total", "available"))
  parts = plan["bytes"]
  state = sum(parts[key] for key in ("parameters", "optimizer", "average")) / GIB
  cells = [
    name,
    f"{plan['examples_per_chip']:g}",
    f"{state:.2f}",
    f"{parts['reference'] / GIB:.2f}",
  ]
  cells += [f"{parts['frozen'] / GIB:.2f}", f"{plan.get('temporaries', 0) / GIB:.2f}"]
  cells += [f"{total:.2f} of {available:.2f}", "yes" if plan["fits"] else "**no**"]
  if plan["fits"]:
    seconds, share = plan["seconds"], plan["mfu"]
    sent = sum(each["bytes"] for each in plan["collectives"].values()) / 1e9
    theirs = f"{share['compiler']:.0%}" if share["compiler"] else "nonsense"
    cells += [f"{plan['model_flops'] / 1e12:.1f}", f"{sent:.1f}", f"{seconds['step']:.3f}"]
    cells += [f"{share['step']:.0%}", f"{share['step_exposed']:.0%}", theirs]
  else:
    cells += ["-"] * 6
  return f"| {' | '.join(cells)} |"


HEADER = """\
| setting, slice | pairs/chip | state | reference | frozen | activations | GiB in all | fits \
| model TFLOP | GB sent | s/step | MFU | none hidden | compiler's own |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
  """Plans what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of plans")
  parser.add_argument("--only", default="", help="regular expression on names of rows")
  parser.add_argument("--print", action="store_true", help="print what is there, compile nothing")
  options = parser.parse_args()
  options.out.mkdir(parents=True, exist_ok=True)
  table, commands = [HEADER], []
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
      commands.append(f"{name}: dmpo-jax plan {arguments}")
  print("\n".join(table))
  versions = plan["versions"] if commands else {}
  print(f"\n{datetime.date.today()}, {versions}\n\n" + "\n".join(commands))


if __name__ == "__main__":
  main()
