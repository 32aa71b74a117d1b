"""One probe: ask for a path, look at the status of the answer."""

import aiohttp

from common.discovery.plan import Plan
from common.http.status import get_status, is_plain

OK = 200


async def ask(session: aiohttp.ClientSession, plan: Plan, path: str, *, timeout_s: float) -> bool:
    """True when a GET is answered with 200 in time. Redirects count as failures.

    Args:
        session: Asks where there is a name or TLS; knows which addresses may be asked (`outbound/sessions.py`).
        plan: Whom to ask.
        path: What to ask for.
        timeout_s: For all of it.
    """
    try:
        if is_plain(plan):
            return await get_status(plan, path, timeout_s=timeout_s) == OK
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with session.get(plan.url + path, timeout=timeout, allow_redirects=False) as response:
            return response.status == OK
    except (aiohttp.ClientError, OSError, ValueError):  # a TimeoutError is an OSError
        return False
