"""Ask nextwatch for recommendations, through Kafka: `RecommendClient`, and `AsyncRecommendClient` for asyncio.

A distribution of its own, so that an application installs this and not the recommender: kafka-python and msgspec are
all that it needs. It imports nothing of the server's; the server's command line and tests ask through it like anybody.
Open client.py first.
"""

from nextwatch_client.async_client import AsyncRecommendClient
from nextwatch_client.client import RecommendClient
from nextwatch_client.errors import OptionsError, RequestFailed, RequestTimeout, TopicMissing
from nextwatch_client.messages import (
    Context,
    Recommended,
    RecommendReply,
    RecommendRequest,
    Search,
    ShownList,
    Signal,
    UserHistory,
    Watch,
)
from nextwatch_client.options import ConnectionOptions

__all__ = [
    "AsyncRecommendClient",
    "ConnectionOptions",
    "Context",
    "OptionsError",
    "RecommendClient",
    "RecommendReply",
    "RecommendRequest",
    "Recommended",
    "RequestFailed",
    "RequestTimeout",
    "Search",
    "ShownList",
    "Signal",
    "TopicMissing",
    "UserHistory",
    "Watch",
]
