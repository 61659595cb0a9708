"""A plan as text."""

GIB = 2**30
NAMES = {
  "parameters": "parameters",
  "optimizer": "optimizer state",
  "ema": "EMA",
  "reference": "reference",
  "frozen": "frozen networks",
  "batch": "batch",
}


def describe(plan: dict) -> str:
  """Formats a plan as lines of text.

  Args:
    plan: Result of `planning.plan.plan_train_step`.

  Returns:
    Text without a final newline.
  """
  mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
  inputs = plan["inputs"]
  images = "pairs" if inputs["images"] == 2 else "images"
  each = "each " if plan["slices"] > 1 else ""
  lines = [
    f"{plan['slice']} ({each}{plan['topology']}, {plan['chips']} chips), mesh {mesh}, jax "
    f"{plan['versions']['jax']}, libtpu {plan['versions']['libtpu']}",
    f"{plan['examples_per_chip']:g} {images} per chip and step in "
    f"{plan['grad_accumulation_steps']} microbatches, "
    f"{inputs['size']} px, inputs: {inputs['kind']}, remat {plan['remat']}",
    "",
    "bytes per chip, GiB",
  ]
  lines += [f"  {NAMES[name]:24}{size / GIB:9.3f}" for name, size in plan["bytes"].items()]
  if "temporaries" in plan:
    lines.append(f"  {'activations and others':24}{plan['temporaries'] / GIB:9.3f}")
  lines.append(f"  {'total':24}{plan['total'] / GIB:9.3f}  of {plan['available'] / GIB:.2f}")
  lines.append("  it fits" if plan["fits"] else "  it does NOT fit")
  if plan["fits"]:
    lines += ["", *_costs(plan)]
  sampling = plan["sampling"]
  lines.append(
    f"sampling an image: {sampling['forwards']} forwards in {sampling['steps']} steps, "
    f"{sampling['model_flops'] / 1e12:.3g} model TFLOP"
  )
  if "search" in plan:
    tried = ", ".join(f"{n}: {size / GIB:.2f}" for n, size in plan["search"].items())
    most = f"{plan['examples_per_chip']:g}" if plan["fits"] else "none"
    lines += ["", f"most per chip that fit: {most} (tried, GiB: {tried})"]
  return "\n".join(lines)


def _costs(plan: dict) -> list[str]:
  seconds, mfu = plan["seconds"], plan["mfu"]
  lines = [
    f"model FLOPs per chip and step      {plan['model_flops'] / 1e12:9.2f} T",
    f"  in the compiled program          {plan['program_flops'] / 1e12:9.2f} T, with "
    "rematerialisation and padded heads",
    "collectives, GB sent by a chip",
    *_traffic(plan["collectives"]),
  ]
  several = plan["slices"] > 1
  if several:
    speed = plan["dcn_bandwidth"] / 1e9
    lines += [
      f"between {plan['slices']} slices, GB sent by a chip, at {speed:g} GB/s",
      *_traffic(plan["between_slices"]),
    ]
  lines += [
    "seconds per step, estimated from the compiled program",
    f"  matrix products         {seconds['matrix']:9.4f}",
    f"  attention kernels       {seconds['attention']:9.4f}",
    f"  memory traffic          {seconds['memory']:9.4f}",
    f"  collectives             {seconds['collectives']:9.4f}",
    *([f"  between slices          {seconds['between_slices']:9.4f}"] if several else []),
    f"  step, collectives hidden{seconds['step']:9.4f}  MFU {mfu['step']:.1%}",
    f"  step, none hidden       {seconds['step_exposed']:9.4f}  MFU {mfu['step_exposed']:.1%}",
  ]
  if mfu["compiler"] is None:
    lines.append("  the compiler has no estimate of its own")
  else:
    doubt = ": impossible, see docs/plan.md" if mfu["compiler"] > 1 else ""
    lines.append(
      f"  compiler's own estimate {seconds['compiler']:9.4f}  MFU "
      f"{mfu['compiler']:.1%}{doubt} (kernels not counted, loops once)"
    )
  return lines


def _traffic(collectives: dict) -> list[str]:
  return [
    f"  {kind:24}{traffic['bytes'] / 1e9:9.3f}  in {traffic['count']}"
    for kind, traffic in collectives.items()
  ]
