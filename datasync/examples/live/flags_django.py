"""Live flags in a Django application, under any server that forks workers, with or without preloading.

Run it (``pip install django gunicorn``)::

    FLAGS=sqlite:flags.db gunicorn -w 4 --preload datasync.examples.live.flags_django:application
"""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

# [flags]
from django.http import HttpRequest, JsonResponse
from django.urls import path

from datasync import open_view

flags = open_view(os.environ["FLAGS"], "flags/", cache=os.environ.get("FLAGS_CACHE", "flags.cache"))
urlpatterns = [path("flags", lambda request: JsonResponse(dict(flags)))]
# [end]


def checkout(request: HttpRequest) -> JsonResponse:
    """Answer with the checkout that the flag chooses."""
    return JsonResponse({"checkout": "new" if flags.get("checkout", {}).get("on") else "old"})


urlpatterns.append(path("checkout", checkout))
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost", "testserver"])
application = get_wsgi_application()
