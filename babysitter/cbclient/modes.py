"""PURE: the server modes, and what each adds to the command and the file names (docs/contract.md 5)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """One server mode. `logs` is the first part of its output files' names; `image`: it is told its image."""

    name: str
    logs: str
    flags: tuple[str, ...] = ()
    image: bool = False

    @property
    def is_mock(self) -> bool:
        """True for a backend that only pretends."""
        return "--mock_backend" in self.flags


MODES = {
    mode.name: mode
    for mode in (
        Mode("inference", "replica", image=True),
        Mode("replica", "replica", image=True),
        Mode("replica_mock", "replica_mock", ("--mock_backend",), image=True),
        Mode("api_gateway", "api_gateway", ("--api_gateway",)),
        Mode("api_gateway_mock", "api_gateway_mock", ("--api_gateway", "--mock_backend")),
        Mode("platform_workload", "platform_workload", ("--platform_workload",)),
        Mode("platform_workload_mock", "platform_workload_mock", ("--platform_workload", "--mock_backend")),
    )
}
