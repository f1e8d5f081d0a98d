"""``isoloss worker template``: files by which workers join from a cluster, ready to be submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from isoloss.cli.output import Output, show
from isoloss.errors import InvalidSpec

GRACE: Final = 120  # seconds between the signal and the kill
SAVE: Final = 100  # of these for trainers to save in

SLURM: Final = """#!/bin/bash
# Workers of isoloss under Slurm, one a node. Copy worker.join (mode 600) to where every node sees it, then:
#   sbatch --export=ALL,ISOLOSS_JOIN=$HOME/worker.join this-file
# Before the time limit, and when it is preempted, the worker hears SIGTERM: trainers save and exit 75, tasks go back with
# their checkpoints, and the job is queued again. Checkpoints lie in ISOLOSS_HOME, which has to be a folder all nodes share.
#SBATCH --job-name=isoloss-worker
#SBATCH --array=1-{nodes}
#SBATCH --nodes={trial_nodes}
#SBATCH --ntasks-per-node=1
{resources}#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@{grace}
#SBATCH --open-mode=append
#SBATCH --output=isoloss-worker-%A_%a.log
set -uo pipefail
: "${{ISOLOSS_JOIN:?say where worker.join lies: sbatch --export=ALL,ISOLOSS_JOIN=...}}"
name="slurm-${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}-${{SLURM_ARRAY_TASK_ID:-0}}"
told=no
leave() {{ told=yes; kill -TERM "$worker" 2>/dev/null; }}
isoloss worker start --join "$ISOLOSS_JOIN" --name "$name" --slots {slots} --grace {save}s{spans}{leaves}{allow} &
worker=$!
trap leave TERM
wait "$worker"; code=$?
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; code=$?; done
if [ "$told" = yes ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}"
  exit 0
fi
exit "$code"
"""

K8S: Final = """# Workers of isoloss on Kubernetes. First the file by which they join, and an image that has isoloss and your trainer:
#   kubectl create secret generic isoloss-join --from-file=worker.join
#   kubectl apply -f this-file
# A pod that is evicted hears SIGTERM: trainers save and exit 75, tasks go back with their checkpoints. Checkpoints lie in
# ISOLOSS_HOME: a claim that all pods share (ReadWriteMany), else set ISOLOSS_STORE: s3://bucket/prefix.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: isoloss-worker
  labels: {{app: isoloss-worker}}
spec:{replicas}
  selector:
    matchLabels: {{app: isoloss-worker}}
  template:
    metadata:
      labels: {{app: isoloss-worker}}
    spec:
      terminationGracePeriodSeconds: {grace}
      containers:
        - name: worker
          image: your-registry/your-trainer:latest
          # a secret's files belong to root; a join file has to be its reader's alone
          command: ["sh", "-c", "umask 077 && cp /join/worker.join /tmp/worker.join && exec isoloss worker start --join /tmp/worker.join --name $POD --slots {slots} --grace {save}s{allow}"]
          env:
            - name: POD
              valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}
            - {{name: ISOLOSS_HOME, value: /isoloss}}
          resources:
            requests: {{cpu: "4", memory: 16Gi}}
            limits: {{memory: 16Gi{gpus}}}
          livenessProbe:
            exec: {{command: ["sh", "-c", "kill -0 1"]}}
            periodSeconds: 30
          volumeMounts:
            - {{name: join, mountPath: /join, readOnly: true}}
            - {{name: home, mountPath: /isoloss}}
      volumes:
        - name: join
          secret: {{secretName: isoloss-join}}
        - name: home
          persistentVolumeClaim: {{claimName: isoloss-home}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: isoloss-home
spec:
  accessModes: [ReadWriteMany]
  resources:
    requests: {{storage: 100Gi}}
"""

KEDA: Final = """---
# As many pods as there is work for, by KEDA (https://keda.sh) and the Prometheus that reads the controller's /metrics: name yours.
# Where these pods may not run all work there is, narrow the query: isoloss_slots_wanted{{trainable=~"function:train:main|gpt"}}.
# A pod that is taken while it works saves and gives its task back.
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: isoloss-worker
spec:
  scaleTargetRef: {{name: isoloss-worker}}
  minReplicaCount: {least}
  maxReplicaCount: {most}
  cooldownPeriod: 300
  triggers:
    - type: prometheus
      metadata:
        serverAddress: http://prometheus.monitoring:9090
        query: sum(isoloss_slots_wanted) or vector(0)
        threshold: "{each}"
"""

RAY: Final = """#!/bin/bash
# Workers of isoloss on a Ray cluster, each {resources}: run this on one of its nodes (or by `ray job submit -- bash this-file`).
# Where this file's worker.join lies, it has to lie on every node, mode 600; isoloss and your trainer are in the cluster's Python.
# They are detached: they outlive this command, and Ray starts again those that are killed. Other numbers change the pool, --workers 0 ends it.
set -euo pipefail
export RAY_AUTH_MODE=token  # start the cluster so: one that asks for no token is refused
: "${{ISOLOSS_JOIN:?say where worker.join lies}}"
exec isoloss worker ray --join "$ISOLOSS_JOIN" {size} --gpus {gpus} --slots {slots}{allow}
"""


def template(
    kind: Literal["slurm", "k8s", "ray"],
    *,
    nodes: Annotated[int, Parameter(help="Workers, one a node (or one for --trial-nodes nodes).")] = 1,
    gpus: Annotated[int, Parameter(help="GPUs a node; 0 for none.")] = 0,
    least: Annotated[
        int | None, Parameter(name="--min", help="With k8s or ray: workers when there is no work.")
    ] = None,
    most: Annotated[
        int | None, Parameter(name="--max", help="With k8s or ray: workers while there is work for so many.")
    ] = None,
    leave_after: Annotated[
        str, Parameter(help="With slurm: a job ends when it had nothing to do for so long: 10m.")
    ] = "",
    trial_nodes: Annotated[int, Parameter(help="Nodes that one trial may span (Slurm); a worker for so many.")] = 1,
    slots: Annotated[str, Parameter(help="Tasks at once on a node: a number, or auto (a GPU each).")] = "auto",
    allow: Annotated[
        tuple[str, ...], Parameter(help="A function workers may run: module:name.", consume_multiple=False)
    ] = (),
    allow_command: Annotated[
        tuple[str, ...], Parameter(help="A command prefix workers may run.", consume_multiple=False)
    ] = (),
    out: Annotated[Path | None, Parameter(help="Where to; standard output without it.")] = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Write a file that starts workers on Slurm, Kubernetes or Ray, to be submitted as it is."""
    import shlex

    from isoloss.domain.quantity import parse_duration

    if nodes < 1:
        raise InvalidSpec(f"--nodes is {nodes}; accepted is a whole number from 1.")
    if trial_nodes < 1 or (trial_nodes > 1 and kind != "slurm"):
        raise InvalidSpec(
            f"--trial-nodes is {trial_nodes}; accepted is a whole number from 1, with slurm, otherwise 1."
        )
    if gpus < 0:
        raise InvalidSpec(f"--gpus is {gpus}; accepted is a whole number from 0.")
    if (least is not None or most is not None) and (kind == "slurm" or not 0 <= (least or 0) <= (most or 0) >= 1):
        raise InvalidSpec(
            f"--min is {least}, --max {most}; accepted with k8s and ray are a number from 0 and one from 1, not below it."
        )
    if leave_after and (kind != "slurm" or parse_duration(leave_after, "--leave-after") <= 0):
        raise InvalidSpec(f"--leave-after is {leave_after}; accepted is, with slurm, a duration above 0.")
    words = [word for one in allow for word in ("--allow", one)]
    words += [word for one in allow_command for word in ("--allow-command", one)]
    shell = "".join(f" {shlex.quote(word)}" for word in words)
    given = {"nodes": nodes, "slots": slots, "grace": GRACE, "save": SAVE}
    match kind:
        case "slurm":
            resources = f"#SBATCH --gpus-per-node={gpus}\n" if gpus else "#SBATCH --cpus-per-task=4\n"
            spans = f" --nodes {trial_nodes}" if trial_nodes > 1 else ""
            text = SLURM.format(**given, resources=resources, allow=shell, trial_nodes=trial_nodes, spans=spans,
                                leaves=f" --leave-after {leave_after}" if leave_after else "")  # fmt: skip
        case "k8s":
            text = K8S.format(
                **given, gpus=f", nvidia.com/gpu: {gpus}" if gpus else "", allow=shell.replace('"', '\\"'),
                replicas="" if most else f"\n  replicas: {nodes}",
            )  # fmt: skip
            each = max(1, gpus, int(slots) if slots.isdecimal() else 0)
            text += KEDA.format(least=least or 0, most=most, each=each) if most else ""
        case "ray":
            size = f'--workers "${{1:-{nodes}}}"' if most is None else f"--min {least or 0} --max {most}"
            text = RAY.format(
                **given, size=size, gpus=gpus, allow=shell, resources=f"with {gpus} GPUs" if gpus else "with a CPU"
            )
    if out is not None:
        out.write_text(text)
    show(
        output,
        {"kind": kind, "text": text, "out": str(out) if out else None},
        f"{kind} workers in {out}" if out else text.rstrip(),
    )
