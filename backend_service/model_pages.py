"""Pages of the model store that fit into a message. Blocking."""

from __future__ import annotations

from collections.abc import Sequence

from ktrdr.models.v1 import model_pb2
from ktrdr.models.v1 import model_service_pb2 as pb

from backend_service.operations.pages import MAX_PAGE_BYTES, check_page_size
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.wire.models import model_query_from_proto, model_summary_to_proto


def model_page(storage: ModelStorage, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
    """Return the models of a page, fewer than asked for where they would not fit; at least one if there is one.

    Raises:
        InvalidInputError: Bad page size, token, order or time.
    """
    query, limit = model_query_from_proto(request), check_page_size(request.page_size)
    while True:
        page = storage.query(query, limit=limit, after=request.page_token)
        messages = [model_summary_to_proto(model) for model in page.models]
        fitting = _num_that_fit(messages)
        if fitting == len(messages):
            return pb.ListModelsResponse(models=messages, next_page_token=page.next)
        limit = fitting  # asked again, since only the store knows the token after that many


def _num_that_fit(messages: Sequence[model_pb2.Model]) -> int:
    size_bytes = 0
    for number, message in enumerate(messages):
        size_bytes += message.ByteSize()
        if number and size_bytes > MAX_PAGE_BYTES:
            return number
    return len(messages)
