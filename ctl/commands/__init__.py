"""One module for each family of commands; `LISTED` is all of them, in the order of `--help`.

A module is imported when one of its commands is on the command line: what all of them need takes most of a second to
import, and `--help` and TAB are to answer at once.
"""

from ctl.command import Listed

LISTED: tuple[Listed, ...] = (
    Listed("up", "start a node: registry, router, agent, and a babysitter for each FILE", "up"),
    Listed("down", "end what was launched here", "down"),
    Listed("status", "show what runs: registry, router, agent, babysitters, replicas", "status"),
    Listed("apply", "make deployments what a fleet file says", "apply"),
    Listed("run", "make one deployment from flags", "apply"),
    Listed("deployments", "list deployments: what should run, and what does", "deployments"),
    Listed("scale", "run so many replicas of a deployment", "deployments"),
    Listed("wake", "start a cold deployment, or wake one that sleeps", "deployments"),
    Listed("sleep", "let a deployment go cold now", "deployments"),
    Listed("delete", "delete a deployment and its replicas", "deployments"),
    Listed("templates", "list what agents can make: templates and their parameters", "deployments"),
    Listed("rollout status", "show a deployment's revisions and what runs of each", "rollout"),
    Listed("rollout pause", "let a rollout stand still", "rollout"),
    Listed("rollout resume", "let a rollout go on", "rollout"),
    Listed("rollout undo", "return to an earlier revision", "rollout"),
    Listed("fleet from-configs", "turn hand-written babysitter files into one fleet file", "fleet"),
    Listed("replicas create", "create a replica", "replicas_create"),
    Listed("replicas wait", "wait until replicas are ready (or stopped)", "replicas_wait"),
    Listed("replicas list", "list replicas", "replicas_show"),
    Listed("replicas get", "show everything about a replica", "replicas_show"),
    Listed(
        "replicas timeline",
        "show what a replica went through: states, stages of its deployment, durations",
        "replicas_history",
    ),
    Listed("replicas logs", "show a replica's log", "replicas_history"),
    Listed("replicas stop", "stop replicas", "replicas_stop"),
    Listed("replicas retry", "let failed replicas begin again", "replicas_stop"),
    Listed("replicas sleep", "let replicas give their accelerators' memory back", "replicas_stop"),
    Listed("replicas wake", "wake replicas that sleep", "replicas_stop"),
    Listed("request from-yaml", "turn a model configuration into a create request", "request"),
    Listed("services", "list every record of the registry", "services"),
    Listed("models", "list the models that the router can be asked for now", "services"),
    Listed("nodes", "list the nodes with their accelerators; drain one, or take it back", "nodes"),
    Listed("chat", "ask a model through the router; the answer appears as it comes", "chat"),
    Listed("top", "watch the fleet live: replicas, state, in flight, tokens/s, time to the first token", "top"),
    Listed("drain", "send no new requests to a server", "drain"),
    Listed("undrain", "send requests to a drained server again", "drain"),
    Listed("keys create", "make an API key; its secret is printed once", "keys"),
    Listed("keys list", "list API keys and their limits", "keys"),
    Listed("keys limits", "show or change what a key may do", "keys"),
    Listed("keys rotate", "give a key another secret", "keys"),
    Listed("keys revoke", "revoke a key for good", "keys"),
    Listed("lora list", "list LoRA adapters and where they are loaded", "lora"),
    Listed("lora load", "load a LoRA adapter into a running server", "lora"),
    Listed("lora unload", "unload a LoRA adapter from a running server", "lora"),
    Listed("explain", "tell where the router would send a request now, and why", "explain"),
    Listed("doctor", "look for what is wrong, and say what to do", "doctor"),
    Listed("completion", "print the code that completes svcctl's words in your shell", "completion"),
)
