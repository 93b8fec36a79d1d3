"""The program of the guide for users of flag services: a flag with rules, asked through the OpenFeature SDK.

python -m datasync.examples.guides.from_launchdarkly sqlite:flags.db
"""

import sys

# [program]
from openfeature import api
from openfeature.evaluation_context import EvaluationContext

from datasync import open_view
from datasync.openfeature import DatasyncProvider


def work(url: str) -> None:
    api.set_provider_and_wait(DatasyncProvider(open_view(url, "flags/", cache="flags.cache")))
    user = EvaluationContext("user-7", {"country": "AT"})
    print(api.get_client().get_boolean_value("new-checkout", False, user))


# [end]
if __name__ == "__main__":
    work(sys.argv[1])
    api.shutdown()
