"""`python -m flows.serve` registers the deployments and runs what is asked for: a server, and no pool and no worker.

Flows need no worker this way, and end with this process. `python -m flows.start` is the other way.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flows.deployments import Deployment, deployments
from flows.server_address import answers
from pipeline.resources import telemetry_off

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment


def registered(deployment: Deployment) -> RunnerDeployment:
    """An entry of prefect.yaml as `prefect.serve` takes it."""
    file, _, function = deployment.entrypoint.partition(":")
    flow: Any = getattr(import_module(file.removesuffix(".py").replace("/", ".")), function)
    made: RunnerDeployment = flow.to_deployment(
        name=deployment.name,
        parameters=dict(deployment.parameters),
        description=deployment.description,
        tags=list(deployment.tags),
    )
    return made


def main() -> None:
    """Serve until the end (Ctrl-C)."""
    telemetry_off()
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.runner import Runner
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url or not answers(url):
        sys.exit(f"no Prefect server answers at {url}: run `.venv/bin/python -m flows.start --no-worker`")
    found = deployments()
    runner = Runner(pause_on_shutdown=False)
    with get_client(sync_client=True) as client:
        for deployment in found:
            identity = runner.add_deployment(registered(deployment))
            # One that `prefect deploy` made has no path, and Prefect's update takes its pull steps and leaves it so.
            client.update_deployment(identity, DeploymentUpdate(path="."))
    names = ", ".join(deployment.name for deployment in found)
    print(f"serving {names}; next, elsewhere: .venv/bin/prefect deployment run {found[0].name}", flush=True)
    asyncio.run(runner.start())


if __name__ == "__main__":
    main()
