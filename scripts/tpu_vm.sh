#!/usr/bin/env bash
# Runs cujax on every worker of a Cloud TPU VM slice. Meant to be read: docs/tpu.md goes through it.
#
#   export TPU=my-slice ZONE=us-east5-b REPOSITORY=https://...
#   scripts/tpu_vm.sh install                 clone and install, on all workers
#   scripts/tpu_vm.sh start FLAGS...          start scripts/unlearn.py --multihost FLAGS... on all workers
#   scripts/tpu_vm.sh logs                    follow the first worker's output
#   scripts/tpu_vm.sh status                  what runs on each worker, and how it ended where it did
#   scripts/tpu_vm.sh stop                    ask it to end (SIGTERM), on all workers
#
# After a preemption: create the slice again, then `install` and the same `start`. What the workdir holds is not computed
# again, so give one that outlives the slice: --workdir gs://BUCKET/FOLDER.
set -euo pipefail

: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"

on_workers() { # WORKER COMMAND
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker "$1" --command "$2"
}

case "${1:-}" in
  install)
    on_workers all "command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
      if [ -d ~/cujax ]; then git -C ~/cujax pull --ff-only; else git clone '${REPOSITORY:?set REPOSITORY to the address to clone}' ~/cujax; fi
      cd ~/cujax && ~/.local/bin/uv sync --extra tpu --extra gcs"
    ;;
  start)
    shift
    flags=$(printf ' %q' --multihost "$@")
    on_workers all "cd ~/cujax && rm -f ~/cujax.status
      nohup bash -c '~/.local/bin/uv run --extra tpu --extra gcs scripts/unlearn.py \"\$@\" & echo \$! >~/cujax.pid
        wait \$!; echo \$? >~/cujax.status' cujax$flags >~/cujax.log 2>&1 </dev/null &"
    ;;
  logs) on_workers 0 "tail -n 50 -F ~/cujax.log" ;;
  status)
    on_workers all "if [ -e ~/cujax.status ]; then echo \"\$(hostname): ended with status \$(cat ~/cujax.status)\"
      else echo \"\$(hostname): runs as \$(cat ~/cujax.pid)\"; fi; tail -n 2 ~/cujax.log"
    ;;
  stop) on_workers all "kill -TERM \"\$(cat ~/cujax.pid)\"" ;;
  *)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
