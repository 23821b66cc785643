"""The fields of Kubeflow's objects, as far as the manifests use them: kubernetes-validate knows Kubernetes' own alone.

Written down from the models in kubeflow-katib-api 0.19.0 (Experiment) and kubeflow-trainer-api 2.3.0 (TrainJob,
TrainingRuntime, JobSet), which are generated from the operators' own types.
"""

from typing import Any

ANY: Any = object()  # checked elsewhere, or the user's own

EXPERIMENT = {
    "objective": {
        "type": str,
        "goal": float,
        "objectiveMetricName": str,
        "additionalMetricNames": [str],
        "metricStrategies": [{"name": str, "value": str}],
    },
    "algorithm": {"algorithmName": str, "algorithmSettings": [{"name": str, "value": str}]},
    "earlyStopping": ANY,
    "parallelTrialCount": int,
    "maxTrialCount": int,
    "maxFailedTrialCount": int,
    "resumePolicy": str,
    "metricsCollectorSpec": {"collector": {"kind": str, "customCollector": ANY}, "source": ANY},
    "parameters": [
        {
            "name": str,
            "parameterType": str,
            "feasibleSpace": {"min": str, "max": str, "step": str, "list": [str], "distribution": str},
        }
    ],
    "trialTemplate": {
        "primaryContainerName": str,
        "primaryPodLabels": ANY,
        "retain": bool,
        "successCondition": str,
        "failureCondition": str,
        "trialParameters": [{"name": str, "reference": str, "description": str}],
        "trialSpec": ANY,
    },
}
TRAIN_JOB = {
    "runtimeRef": {"name": str, "kind": str, "apiGroup": str},
    "trainer": {
        "image": str,
        "command": [str],
        "args": [str],
        "env": ANY,
        "numNodes": int,
        "numProcPerNode": int,
        "resourcesPerNode": ANY,
    },
    "initializer": ANY,
    "suspend": bool,
    "managedBy": str,
    "activeDeadlineSeconds": int,
    "runtimePatches": ANY,
}
TRAINING_RUNTIME = {
    "mlPolicy": {"numNodes": int, "torch": ANY, "mpi": ANY, "jax": ANY, "flux": ANY, "xgboost": ANY},
    "podGroupPolicy": ANY,
    "template": {
        "metadata": ANY,
        "spec": {
            "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
            "replicatedJobs": [{"name": str, "groupName": str, "replicas": int, "template": ANY}],
            "failurePolicy": {"maxRestarts": int, "restartStrategy": str, "rules": ANY},
            "successPolicy": ANY,
            "ttlSecondsAfterFinished": int,
        },
    },
}


def unknown(value: Any, fields: Any, place: str = "spec") -> list[str]:
    """Return where a value has fields that are not known, or of another type."""
    if fields is ANY:
        return []
    if isinstance(fields, dict):
        if not isinstance(value, dict):
            return [place]
        return [
            line
            for name, part in value.items()
            for line in (
                unknown(part, fields[name], f"{place}.{name}") if name in fields else [f"{place}.{name}"]
            )
        ]
    if isinstance(fields, list):
        if not isinstance(value, list):
            return [place]
        return [
            line
            for number, part in enumerate(value)
            for line in unknown(part, fields[0], f"{place}[{number}]")
        ]
    fits = isinstance(value, fields) and (fields is bool or not isinstance(value, bool))
    return [] if fits else [place]
