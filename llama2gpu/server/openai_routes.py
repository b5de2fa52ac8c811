"""`/v1`: models, completions and chats, as OpenAI's API has them."""

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llama2gpu.request import Request as EngineRequest
from llama2gpu.server.errors import APIError, answer
from llama2gpu.server.schemas import ChatBody, CompletionBody, Sampling
from llama2gpu.server.service import Service
from llama2gpu.server.shape import ChatShape, CompletionShape, Shape, counts, usage
from llama2gpu.server.stream import EventStream

#: OpenAI's default for completions.
MAX_TOKENS = 16


def routes(service: Service) -> APIRouter:
    """The routes over a service."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> Response:
        """The one model that is served."""
        return answer({"object": "list", "data": [_model(service)]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        """What is known of a model."""
        service.check_model(name)
        return answer(_model(service))

    @router.post("/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Text that goes on where a prompt ends."""
        body.check()
        service.check_model(body.model)
        max_tokens = MAX_TOKENS if body.max_tokens is None else body.max_tokens
        params = body.params(max_tokens, body.logprobs)
        n = body.n or 1
        requests: list[EngineRequest] = []
        echoes: dict[int, str] = {}
        if len(body.prompts) * n > service.settings.capacity:
            raise APIError(400, "more answers than the server takes at once", param="n")
        for prompt in body.prompts:
            ids = await service.encode(prompt) if isinstance(prompt, str) else prompt
            if body.echo:
                text = prompt if isinstance(prompt, str) else await service.decode(prompt)
                echoes |= {len(requests) + i: text for i in range(n)}
            requests += service.requests(ids, params, n)
        logprobs = body.logprobs is not None
        shape = CompletionShape(service.settings.name, service.llama.tokenizer, logprobs, echoes)
        return await respond(service, body, requests, shape, request)

    @router.post("/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """The model's turn in a conversation."""
        body.check()
        service.check_model(body.model)
        bound = (
            body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        )
        params = body.params(bound, (body.top_logprobs or 0) if body.logprobs else None)
        talk, n = service.llama.chat, body.n or 1
        params = replace(params, stop=(*params.stop, *talk.stops))
        ids = await service.talk([message.plain for message in body.messages])
        requests = service.requests(ids, params, n, talk.stop_ids)
        shape = ChatShape(service.settings.name, service.llama.tokenizer, bool(body.logprobs), n)
        return await respond(service, body, requests, shape, request)

    return router


async def respond(
    service: Service,
    body: Sampling,
    requests: list[EngineRequest],
    shape: Shape,
    request: Request,
) -> Response:
    """Runs the requests of one body: a stream, or one object at the end."""
    n, streams = body.n or 1, bool(body.stream)
    call = await service.begin(requests, streams=streams)
    if streams:
        limit = service.settings.timeout
        return EventStream(call, shape, n, with_usage=body.wants_usage, limit=limit)
    wholes = await service.collect(call, request.receive)
    if wholes is None:
        return Response(status_code=499)
    choices = [shape.whole_choice(index, piece) for index, piece in enumerate(wholes)]
    request.state.log = counts(call, n)
    return answer(shape.envelope(choices, chunk=False) | {"usage": usage(call, n)})


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.name,
        "object": "model",
        "created": service.created,
        "owned_by": "llama2gpu",
        "max_model_len": service.context,
    }
