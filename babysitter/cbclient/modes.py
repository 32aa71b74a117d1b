"""PURE: the server modes, and what each adds to the command and the file names (docs/contract.md 5)."""

from dataclasses import dataclass, replace

MOCK, GATEWAY, PLATFORM = "--mock_backend", "--api_gateway", "--platform_workload"


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
        return MOCK in self.flags

    @property
    def is_gateway(self) -> bool:
        """True for a gateway to other servers."""
        return GATEWAY in self.flags

    def mocked(self) -> "Mode":
        """The same mode with a backend that only pretends."""
        return self if self.is_mock else replace(self, flags=(*self.flags, MOCK))


MODES = {
    mode.name: mode
    for mode in (
        Mode("inference", "replica", image=True),
        Mode("replica", "replica", image=True),
        Mode("replica_mock", "replica_mock", (MOCK,), image=True),
        Mode("api_gateway", "api_gateway", (GATEWAY,)),
        Mode("api_gateway_mock", "api_gateway_mock", (GATEWAY, MOCK)),
        Mode("platform_workload", "platform_workload", (PLATFORM,)),
        Mode("platform_workload_mock", "platform_workload_mock", (PLATFORM, MOCK)),
    )
}
