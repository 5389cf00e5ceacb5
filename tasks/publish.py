"""The publish stage: what has proved itself goes where it was asked to go."""

from __future__ import annotations

from prefect import task
from prefect.logging import get_run_logger

from image_builders.container.publish import publish_container
from image_builders.container.record import ContainerImage
from tasks.build import container_request, credentials_of, remember_published
from tasks.retries import STAGE
from tasks.run_pass import Pass


@task(name="publish", **STAGE)
def publish(this: Pass, image: ContainerImage) -> ContainerImage:
    """Push the container image to the region's registry, where it has one; its digest there is compared.

    Raises RegistryDenied, RegistryUnreachable, ContainerEngineAway.
    """
    target = this.job.targets.container_image
    assert target is not None
    if this.region.registry is None:
        get_run_logger().info("the region has no registry: the image stays in the engine as %s", image.reference)
        return image
    progress = this.progress("publish")
    request = container_request(this, image.snapshot_id, image.id)
    published = publish_container(image, request, credentials_of(target.credentials, this.region.registry), progress)
    remember_published(this, published)
    progress.finish()
    get_run_logger().info("%s is %s", published.reference, published.digest)
    return published
