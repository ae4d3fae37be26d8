"""What launch/k8s_jobset.yaml may say: the part of the JobSet, Job and Pod APIs that it uses, written from their docs.

A schema is a type; a set of the values allowed; a list of one schema, for each item; {'*': schema} for any keys; or a
dict, key -> schema, where keys that end in '!' must be there and no other key may be.
"""

from typing import Any

FIELD = {'fieldRef!': {'fieldPath!': str}}
ENV = {'name!': str, 'value': str, 'valueFrom': FIELD}
CONTAINER = {
    'name!': str,
    'image!': str,
    'command': [str],
    'args': [str],
    'env': [ENV],
    'ports': [{'containerPort!': int, 'name': str, 'protocol': {'TCP', 'UDP', 'SCTP'}}],
    'resources': {'limits': {'*': (str, int)}, 'requests': {'*': (str, int)}},
    'volumeMounts': [{'name!': str, 'mountPath!': str, 'readOnly': bool, 'subPath': str}],
}
VOLUME = {
    'name!': str,
    'persistentVolumeClaim': {'claimName!': str, 'readOnly': bool},
    'emptyDir': {'medium': {'', 'Memory'}, 'sizeLimit': str},
}
POD = {
    'restartPolicy!': {'Never', 'OnFailure'},  # a Job's pods; a podFailurePolicy asks for Never
    'terminationGracePeriodSeconds': int,
    'nodeSelector': {'*': str},
    'containers!': [CONTAINER],
    'volumes': [VOLUME],
}
POD_FAILURE_RULE = {
    'action!': {'FailJob', 'FailIndex', 'Ignore', 'Count'},
    'onExitCodes': {'containerName': str, 'operator!': {'In', 'NotIn'}, 'values!': [int]},
    'onPodConditions': [{'type!': str, 'status!': {'True', 'False', 'Unknown'}}],
}
JOB = {
    'parallelism': int,
    'completions': int,
    'completionMode': {'Indexed', 'NonIndexed'},
    'backoffLimit': int,
    'podFailurePolicy': {'rules!': [POD_FAILURE_RULE]},
    'template!': {'metadata': {'*': dict}, 'spec!': POD},
}
JOBSET = {
    'apiVersion!': {'jobset.x-k8s.io/v1alpha2'},
    'kind!': {'JobSet'},
    'metadata!': {'name!': str, 'namespace': str, 'labels': {'*': str}, 'annotations': {'*': str}},
    'spec!': {
        'failurePolicy': {
            'maxRestarts': int,
            'restartStrategy': {'Recreate', 'BlockingRecreate'},
            'rules': [
                {
                    'name': str,
                    'action!': {'FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'},
                    'onJobFailureReasons': [
                        {
                            'BackoffLimitExceeded',
                            'DeadlineExceeded',
                            'FailedIndexes',
                            'MaxFailedIndexesExceeded',
                            'PodFailurePolicy',
                        }
                    ],
                    'targetReplicatedJobs': [str],
                }
            ],
        },
        'network': {'enableDNSHostnames': bool, 'publishNotReadyAddresses': bool, 'subdomain': str},
        'replicatedJobs!': [{'name!': str, 'replicas': int, 'template!': {'metadata': {'*': dict}, 'spec!': JOB}}],
    },
}


def problems(value: Any, schema: Any, where: str = '') -> list[str]:
    """What does not fit, one line each."""
    if isinstance(schema, set):
        return [] if isinstance(value, str) and value in schema else [f'{where}: {value!r} is none of {sorted(schema)}']
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f'{where}: not a list of anything']
        return [p for i, item in enumerate(value) for p in problems(item, schema[0], f'{where}[{i}]')]
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f'{where}: not an object']
        if '*' in schema:
            return [p for key, item in value.items() for p in problems(item, schema['*'], f'{where}.{key}')]
        known = {key.rstrip('!'): part for key, part in schema.items()}
        found = [f'{where}: lacks {key[:-1]}' for key in schema if key.endswith('!') and key[:-1] not in value]
        found += [f'{where}: {key} is not known' for key in value if key not in known]
        return found + [
            p for key, item in value.items() if key in known for p in problems(item, known[key], f'{where}.{key}')
        ]
    fits = isinstance(value, schema) and not (isinstance(value, bool) and schema is not bool)
    return [] if fits else [f'{where}: {value!r} is of the wrong type']
