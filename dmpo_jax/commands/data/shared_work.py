"""Options of commands whose work several machines share."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares --hosts, --host and --distributed."""
  parser.add_argument("--hosts", type=int, default=1, help="machines that share the work")
  parser.add_argument("--host", type=int, default=0, help="number of this machine, from 0")
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="take host and hosts from jax.distributed (TPU pods, Slurm, GKE)",
  )


def host_and_hosts(options: argparse.Namespace) -> tuple[int, int]:
  """Number of this host and number of hosts; starts jax.distributed where that is asked for.

  Raises:
    InputError: The numbers are out of range, or the other processes cannot be found.
  """
  import jax

  from dmpo_jax.common.files import reason
  from dmpo_jax.data import resumable
  from dmpo_jax.errors import InputError

  host, hosts = options.host, options.hosts
  if options.distributed:
    if (host, hosts) != (0, 1):
      raise InputError("--distributed sets host and hosts; leave --host and --hosts out")
    try:
      jax.distributed.initialize()
    except ValueError as error:
      raise InputError(
        f"cannot find the other processes: {reason(error)}; jax does by itself on TPU pods and "
        "under Slurm, MPI or Kubernetes; elsewhere give --hosts and --host"
      ) from error
    host, hosts = jax.process_index(), jax.process_count()
  resumable.check_hosts(host, hosts)
  return host, hosts
