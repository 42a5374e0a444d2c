"""The start of every command: the settings, built once, and the services of a running `nextwatch up`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from infra.platform.logs import set_up_logging
from infra.platform.run_files import find_services
from infra.platform.settings import Settings, SettingsError, load_settings


class Session:
    """One run of the command line. Settings are read at first use, so that `--help` needs none."""

    def __init__(self, config: Path | None, overrides: dict[str, Any]) -> None:
        self._config = config
        self._overrides = overrides

    @cached_property
    def settings(self) -> Settings:
        settings = load_settings(self._config, self._overrides)
        set_up_logging(settings.log_level, settings.log_format)
        return settings

    @cached_property
    def connected(self) -> Settings:
        """The settings with the broker known (and Milvus, if it can be): as set, else of the `nextwatch up` that runs
        on this data_dir. Raises ServiceError when there is no broker, KafkaRefused when it does not let us in."""
        from infra.platform.kafka_access import require_access

        settings = find_services(self.settings)
        require_access(settings.kafka)
        return settings

    @cached_property
    def reachable(self) -> Settings | None:
        """The same, None where no broker is set and no `nextwatch up` runs on this data_dir."""
        from infra.platform.run_files import services_run

        return self.connected if self.settings.kafka.bootstrap or services_run(self.settings) else None

    @cached_property
    def with_milvus(self) -> Settings:
        """The same, with Milvus known for certain."""
        settings = self.connected
        if not settings.milvus.uri:
            raise SettingsError(
                f"milvus.uri is not set and no `nextwatch up` runs on {settings.data_dir}: set NEXTWATCH_MILVUS__URI"
            )
        return settings
