"""TLS and tokens of real servers: who is let in, what is refused before it is read, what changes while they serve."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1 import training_service_pb2_grpc
from ktrdr.training.v1.execution_mode_pb2 import EXECUTION_MODE_HOST
from ktrdr.training.v1.scheduling_pb2 import Scheduling
from ktrdr_client import AsyncClient

from ktrdr_core.errors import (
    InvalidInputError,
    KtrdrError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnreachableError,
)
from ktrdr_core.rpc.authentication import HEADER
from ktrdr_core.rpc.caller import require_scope
from ktrdr_core.rpc.channel import open_channel, open_sync_channel
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.secured_channel import SecuredChannel
from ktrdr_core.rpc.server import add_health_and_reflection, bind, create_server
from ktrdr_core.rpc.server_security import ServerSecurity
from ktrdr_core.security.deployment import renew_certificates
from ktrdr_core.security.scopes import Scope
from ktrdr_core.security.service_security import ServiceSecurity
from ktrdr_core.security.tokens import TokenTable, revoke_token
from ktrdr_core.security.watched_files import LOOK_EVERY_S
from tests.architecture.test_rpcs import SERVED
from tests.kit.backend import FakeTrainer, a_spec, running_backend, running_trainer
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.security import Deployment, a_deployment

SERVICE = "ktrdr.training.v1.TrainingService"  # its scopes are those of the table
KINDS = {
    "unary_unary": "GetConfig",
    "unary_stream": "StreamProgress",
    "stream_unary": "Train",
    "stream_stream": "Cancel",
}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return a_deployment(tmp_path_factory.mktemp("security") / "files")


@pytest.fixture
def own_deployment(tmp_path: Path) -> Deployment:
    """One whose files the test changes."""
    return a_deployment(tmp_path / "files")


class Echo:
    """Serves one RPC of each kind under names that are in the table of scopes; answers what it was called with."""

    def __init__(self) -> None:
        self.num_read = 0
        self.certificates: list[bytes] = []
        self.may_end = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers = {
            name: getattr(grpc, f"{kind}_rpc_method_handler")(
                getattr(self, f"_{kind}"), request_deserializer=self._read
            )
            for kind, name in KINDS.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _read(self, raw: bytes) -> bytes:
        self.num_read += 1
        return raw

    async def _unary_unary(self, request: bytes, context: Any) -> bytes:
        self.certificates = context.auth_context().get("x509_pem_cert", [])
        return request

    async def _unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        await self.may_end.wait()
        yield request

    async def _stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([request async for request in requests])

    async def _stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request


@asynccontextmanager
async def echoing(
    security: ServiceSecurity, echo: Echo | None = None, *, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[str]:
    """Serve an Echo, health and reflection; yields the address."""
    used = ServerSecurity(security, clock=clock)
    server = create_server(security=used)
    (echo or Echo()).add_to(server)
    add_health_and_reflection(server, [SERVICE])
    port = bind(server, "127.0.0.1:0", used)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def _hello(channel: grpc.aio.Channel, timeout_s: float = PATIENCE_S) -> bytes:
    """Call GetConfig, or raise what it is refused with."""
    method: Any = channel.unary_unary(f"/{SERVICE}/GetConfig")
    try:
        answer: bytes = await method(b"hello", timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    return answer


async def _asks(address: str, security: ChannelSecurity | None) -> bytes:
    async with open_channel(address, security) as channel:
        return await _hello(channel)


# Who is let in


async def _messages() -> AsyncIterator[bytes]:
    yield b""


def _kind(method: MethodDescriptor) -> str:
    sides = (method.client_streaming, method.server_streaming)
    return "_".join("stream" if is_stream else "unary" for is_stream in sides)


async def _call(channel: grpc.aio.Channel, method: MethodDescriptor) -> grpc.StatusCode:
    """Call an RPC of any kind with an empty request; return its status."""
    kind = _kind(method)
    made: Any = getattr(channel, kind)(f"/{method.containing_service.full_name}/{method.name}")
    call = made(_messages() if kind.startswith("stream") else b"", timeout=PATIENCE_S)
    if kind.endswith("stream"):
        with suppress(grpc.aio.AioRpcError):
            await call.read()
        if not call.done():
            call.cancel()
    code: grpc.StatusCode = await call.code()
    return code


BACKEND_RPCS = [
    method for service, servicer in SERVED if servicer.__module__.startswith("backend") for method in service.methods
]


async def test_no_rpc_answers_without_a_token_of_the_right_scope(deployment: Deployment, tmp_path: Path) -> None:
    async with running_backend(tmp_path, backend_token_file=deployment.table) as backend:
        address = f"127.0.0.1:{backend.app.port}"
        async with open_channel(address) as nobody:
            refused = {method.full_name: await _call(nobody, method) for method in BACKEND_RPCS}
        assert set(refused.values()) == {grpc.StatusCode.UNAUTHENTICATED}
        async with open_channel(address, ChannelSecurity(token_file=deployment.file("reader.token"))) as reader:
            denied = {
                method.name
                for method in BACKEND_RPCS
                if await _call(reader, method) is grpc.StatusCode.PERMISSION_DENIED
            }
    assert denied == {
        *("Train", "Cancel", "DeleteTraining", "UpdateConfig", "SetTrainerDraining", "Register"),
        *("UploadModel", "QueryUpload", "DeleteModel", "SetModelAlias", "CollectGarbage", "ImportBars"),
    }


@pytest.mark.parametrize(
    ("name", "is_let_in"), [("reader", True), ("alice", True), ("admin", True), ("trainer", False), (None, False)]
)
async def test_token_lets_in_who_has_the_scope(deployment: Deployment, name: str | None, is_let_in: bool) -> None:
    async with echoing(deployment.service("backend")) as address:
        if is_let_in:
            assert await _asks(address, deployment.caller(name)) == b"hello"
        else:
            with pytest.raises(UnauthenticatedError if name is None else PermissionDeniedError):
                await _asks(address, deployment.caller(name))


async def test_health_answers_everybody_and_reflection_readers_only(deployment: Deployment) -> None:
    async with (
        echoing(deployment.service("backend")) as address,
        open_channel(address, deployment.caller()) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        for name, code in ((None, "UNAUTHENTICATED"), ("trainer", "PERMISSION_DENIED"), ("reader", "OK")):
            async with open_channel(address, deployment.caller(name)) as channel:
                method: Any = channel.stream_stream(path)
                call = method(_messages())
                with suppress(grpc.aio.AioRpcError):
                    await call.read()
                assert (await call.code()).name == code


async def test_refusal_names_the_scope_that_is_missing_and_nothing_secret(deployment: Deployment) -> None:
    async with echoing(deployment.service("backend")) as address:
        with pytest.raises(PermissionDeniedError) as refused:
            await _asks(address, deployment.caller("trainer"))
    assert "the token of trainer has the scope trainer" in refused.value.message
    assert f"{SERVICE}/GetConfig needs read" in refused.value.message
    assert deployment.token("trainer") not in str(vars(refused.value))


@pytest.mark.parametrize(
    "metadata",
    [
        ((HEADER, "Bearer "),),
        ((HEADER, "Bearer ktrdr_guess"),),
        ((HEADER, "Basic {token}"),),
        ((HEADER, "bearer{token}"),),
        ((HEADER, "{token}"),),
        ((HEADER, "Bearer {token} "),),
        ((HEADER, "Bearer {token}"), (HEADER, "Bearer {token}")),
        (("x-authorization", "Bearer {token}"),),
        ((f"{HEADER}-bin", b"Bearer"),),
    ],
)
async def test_header_that_is_not_one_token_is_refused(deployment: Deployment, metadata: Any) -> None:
    token = deployment.token("admin")
    sent = [(key, value if isinstance(value, bytes) else value.format(token=token)) for key, value in metadata]
    async with (
        echoing(deployment.service("backend")) as address,
        open_channel(address, deployment.caller()) as channel,
    ):
        method: Any = channel.unary_unary(f"/{SERVICE}/GetConfig")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(b"", metadata=sent)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert token not in str(refused.value)


async def _all_of(call: Any) -> list[bytes]:
    return [each async for each in call]


@pytest.mark.parametrize("kind", KINDS)
async def test_refused_call_is_not_read(deployment: Deployment, kind: str) -> None:
    echo = Echo()
    async with echoing(deployment.service("backend"), echo) as address:
        for security, is_read in ((deployment.caller("trainer"), False), (deployment.caller("admin"), True)):
            async with open_channel(address, security) as channel:
                call: Any = getattr(channel, kind)(f"/{SERVICE}/{KINDS[kind]}")(
                    _messages() if kind.startswith("stream") else b"", timeout=PATIENCE_S
                )
                echo.may_end.set()
                with suppress(grpc.aio.AioRpcError):
                    await (_all_of(call) if kind.endswith("stream") else call)
            assert (echo.num_read > 0) is is_read


async def test_caller_is_refused_before_it_has_sent_anything(deployment: Deployment) -> None:
    async with (
        echoing(deployment.service("backend")) as address,
        open_channel(address, deployment.caller("trainer")) as channel,
    ):
        made: Any = channel.stream_unary(f"/{SERVICE}/{KINDS['stream_unary']}")
        call = made()
        assert await asyncio.wait_for(call.code(), PATIENCE_S) is grpc.StatusCode.PERMISSION_DENIED


async def test_method_that_nobody_serves_is_told_to_an_admin_only(deployment: Deployment) -> None:
    async with echoing(deployment.service("backend")) as address:
        for name, code in (("alice", "PERMISSION_DENIED"), ("admin", "UNIMPLEMENTED")):
            async with open_channel(address, deployment.caller(name)) as channel:
                method: Any = channel.unary_unary("/ktrdr.other.v1.Service/Other")
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await method(b"")
                assert refused.value.code().name == code


# Whose trainings they are


async def _train(backend_address: str, security: ChannelSecurity, user: str = "") -> str:
    async with open_channel(backend_address, security) as channel:
        stub: Any = training_service_pb2_grpc.TrainingServiceStub(channel)
        try:
            answer = await stub.Train(pb.TrainRequest(spec=a_spec(), scheduling=Scheduling(user=user)))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return str(answer.training.scheduling.user)


async def test_training_belongs_to_the_token_that_started_it(deployment: Deployment, tmp_path: Path) -> None:
    def token(name: str) -> ChannelSecurity:
        return ChannelSecurity(token_file=deployment.file(f"{name}.token"))

    async with running_backend(tmp_path, backend_token_file=deployment.table) as backend:
        address = f"127.0.0.1:{backend.app.port}"
        assert await _train(address, token("alice")) == "alice"
        assert await _train(address, token("alice"), "alice") == "alice"
        assert await _train(address, token("admin")) == "admin"
        assert await _train(address, token("admin"), "carol") == "carol"
        before = await backend.trainings.ListTrainings(
            pb.ListTrainingsRequest(), metadata=_header(deployment, "reader")
        )
        with pytest.raises(PermissionDeniedError, match="the token of alice starts trainings of alice, not of bob"):
            await _train(address, token("alice"), "bob")
        after = await backend.trainings.ListTrainings(pb.ListTrainingsRequest(), metadata=_header(deployment, "reader"))
        assert len(before.trainings) == len(after.trainings) == 4
        names = ["alice", "bob"] * 10
        assert await asyncio.gather(*(_train(address, token(name)) for name in names)) == names


def _header(deployment: Deployment, name: str) -> tuple[tuple[str, str], ...]:
    return ((HEADER, f"Bearer {deployment.token(name)}"),)


async def test_service_without_tokens_lets_everybody_do_everything(tmp_path: Path) -> None:
    require_scope(Scope.ADMIN, "anything")
    async with running_backend(tmp_path) as backend, AsyncClient(f"127.0.0.1:{backend.app.port}") as client:
        assert (await client.get_config()).local_slots == 1


# Where the backend's own token is not taken


async def test_trainer_that_does_not_take_the_backends_token_is_not_healthy(tmp_path: Path) -> None:
    class Strict(FakeTrainer):
        async def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802  the name of the RPC
            raise UnauthenticatedError("the token of the call is not known here")

    async with running_trainer(Strict(tmp_path)) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        (found,) = (await backend.trainings.ListTrainers(pb.ListTrainersRequest())).trainers
    assert (found.is_healthy, "not known here" in found.message) == (False, True)


@pytest.mark.parametrize("error", [UnauthenticatedError, PermissionDeniedError])
async def test_training_is_not_given_up_while_a_token_is_replaced(tmp_path: Path, error: type[KtrdrError]) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.refusal = error("the token of the call is not known here")
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(EXECUTION_MODE_HOST))
        await eventually(lambda: len(trainer.asked_to_train) > 1, what="a further try")
        trainer.refusal = None
        await backend.until(training_id, "RUNNING")


# What carries the token


async def _requests() -> AsyncIterator[bytes]:
    for part in (b"a", b"b"):
        yield part


async def test_calls_of_every_kind_carry_it(deployment: Deployment) -> None:
    echo = Echo()
    echo.may_end.set()
    async with (
        echoing(deployment.service("backend"), echo) as address,
        open_channel(address, deployment.caller("admin")) as channel,
    ):
        make: dict[str, Any] = {kind: getattr(channel, kind)(f"/{SERVICE}/{KINDS[kind]}") for kind in KINDS}
        assert await make["unary_unary"](b"x") == b"x"
        assert [each async for each in make["unary_stream"](b"x")] == [b"x", b"x"]
        assert await make["stream_unary"](_requests()) == b"ab"
        assert [each async for each in make["stream_stream"](_requests())] == [b"a", b"b"]
        call = make["stream_stream"]()
        await call.write(b"c")
        assert await call.read() == b"c"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

        def sync() -> None:
            with open_sync_channel(address, deployment.caller("admin")) as channel:
                make: dict[str, Any] = {kind: getattr(channel, kind)(f"/{SERVICE}/{KINDS[kind]}") for kind in KINDS}
                assert make["unary_unary"](b"x") == b"x"
                assert make["unary_unary"].with_call(b"x")[0] == b"x"
                assert list(make["unary_stream"](b"x")) == [b"x", b"x"]
                assert make["stream_unary"].future(iter([b"a", b"b"])).result() == b"ab"
                assert list(make["stream_stream"](iter([b"a", b"b"]))) == [b"a", b"b"]

        await asyncio.to_thread(sync)


async def test_metadata_of_the_caller_goes_along(deployment: Deployment) -> None:
    async with (
        echoing(deployment.service("backend")) as address,
        open_channel(address, deployment.caller("admin")) as channel,
    ):
        method: Any = channel.unary_unary(f"/{SERVICE}/GetConfig")
        assert await method(b"x", metadata=(("x-other", "1"),)) == b"x"


def test_token_is_never_sent_to_another_machine_in_plain_text(deployment: Deployment) -> None:
    plain = ChannelSecurity(token_file=deployment.file("alice.token"))
    for address in ("gpu-1:50052", "10.0.0.7:1", "localhost.evil.example:1"):
        assert plain.token_for(address) is None
        with pytest.raises(InvalidInputError, match=f"not sent to {address} in plain text"):
            AsyncClient(address, security=plain)
    assert plain.token_for("127.0.0.1:50051") == deployment.token("alice")
    assert deployment.caller("alice").token_for("gpu-1:50052") == deployment.token("alice")


def test_certificate_without_a_ca_is_refused(deployment: Deployment) -> None:
    with pytest.raises(InvalidInputError, match="name the CA"):
        ChannelSecurity(cert=deployment.file("user.crt"), key=deployment.file("user.key"))


# TLS


async def test_server_with_tls_takes_no_plain_text_and_is_known_by_its_ca(
    deployment: Deployment, own_deployment: Deployment
) -> None:
    async with echoing(deployment.service("backend")) as address:
        assert await _asks(address, deployment.caller("alice")) == b"hello"
        plain = ChannelSecurity(token_file=deployment.file("alice.token"))
        for other in (None, plain, own_deployment.caller("alice")):
            with pytest.raises(UnreachableError):
                await _asks(address, other)


@pytest.mark.parametrize(("shows", "is_let_in"), [("user", True), ("trainer", True), (None, False)])
async def test_certificate_is_wanted_of_callers_where_a_ca_is_given(
    deployment: Deployment, shows: str | None, is_let_in: bool
) -> None:
    echo = Echo()
    async with echoing(deployment.service("backend", is_mutual=True), echo) as address:
        if is_let_in:
            assert await _asks(address, deployment.caller("alice", shows=shows)) == b"hello"
            assert echo.certificates == [deployment.file(f"{shows}.crt").read_bytes()]
        else:
            with pytest.raises(UnreachableError):
                await _asks(address, deployment.caller("alice", shows=shows))


async def test_certificate_of_another_ca_is_refused(deployment: Deployment, own_deployment: Deployment) -> None:
    stranger = ChannelSecurity(
        ca=deployment.file("ca.crt"), cert=own_deployment.file("user.crt"), key=own_deployment.file("user.key")
    )
    async with echoing(deployment.service("backend", is_mutual=True)) as address:
        with pytest.raises(UnreachableError):
            await _asks(address, stranger)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_tls_below_1_2_is_refused(deployment: Deployment) -> None:
    def shake_hands(address: str, version: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=str(deployment.file("ca.crt")))
        context.set_alpn_protocols(["h2"])
        context.set_ciphers("DEFAULT@SECLEVEL=0")  # else OpenSSL itself refuses the old one
        context.minimum_version = context.maximum_version = version
        found: str | None = _with_tls(address, context, lambda secure: secure.version())
        return found

    async with echoing(deployment.service("backend")) as address:
        assert await asyncio.to_thread(shake_hands, address, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(shake_hands, address, ssl.TLSVersion.TLSv1_1)


def _with_tls(address: str, context: ssl.SSLContext, ask: Callable[[ssl.SSLSocket], Any]) -> Any:
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        return ask(secure)


# Changes while they serve


def _shown(deployment: Deployment, address: str) -> int:
    """Return the serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(deployment.file("ca.crt")))
    context.set_alpn_protocols(["h2"])
    der = _with_tls(address, context, lambda secure: secure.getpeercert(binary_form=True))
    return x509.load_der_x509_certificate(der).serial_number


def _stored(deployment: Deployment, name: str) -> int:
    return x509.load_pem_x509_certificate(deployment.file(f"{name}.crt").read_bytes()).serial_number


async def test_new_connections_get_a_new_certificate_and_old_ones_go_on(own_deployment: Deployment) -> None:
    echo = Echo()
    async with (
        echoing(own_deployment.service("backend"), echo) as address,
        open_channel(address, own_deployment.caller("alice")) as channel,
    ):
        stream: Any = channel.unary_stream(f"/{SERVICE}/StreamProgress")
        call = stream(b"x")
        assert await call.read() == b"x"
        before = await asyncio.to_thread(_shown, own_deployment, address)
        assert before == _stored(own_deployment, "backend")
        renew_certificates(own_deployment.directory)
        assert _stored(own_deployment, "backend") != before

        async def is_new() -> bool:
            return await asyncio.to_thread(_shown, own_deployment, address) == _stored(own_deployment, "backend")

        await eventually(is_new, what="the new certificate")
        echo.may_end.set()
        assert await call.read() == b"x"
        assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize("broken", ["backend.crt", "backend.key"])
async def test_bad_new_certificate_keeps_the_old_one(own_deployment: Deployment, broken: str) -> None:
    before = _stored(own_deployment, "backend")
    other = own_deployment.file(broken.replace("backend", "trainer")).read_bytes()
    now = itertools.count(step=2 * LOOK_EVERY_S)  # whoever asks looks at the disk
    async with echoing(own_deployment.service("backend"), clock=lambda: next(now)) as address:
        for content in (b"junk", other, b""):
            own_deployment.file(broken).write_bytes(content)
            assert await asyncio.to_thread(_shown, own_deployment, address) == before
            assert await _asks(address, own_deployment.caller("alice")) == b"hello"


async def test_long_lived_channel_shows_a_new_certificate_and_its_streams_go_on(own_deployment: Deployment) -> None:
    echo = Echo()
    async with (
        echoing(own_deployment.service("backend", is_mutual=True), echo) as address,
        SecuredChannel(address, own_deployment.caller("alice", shows="user"), ()) as channel,
    ):
        stream: Any = channel.unary_stream(f"/{SERVICE}/StreamProgress")
        call = stream(b"x")
        assert await call.read() == b"x"
        await _hello(channel)
        renew_certificates(own_deployment.directory)
        new = own_deployment.file("user.crt").read_bytes()

        async def is_new() -> bool:
            await _hello(channel)
            return echo.certificates == [new]

        await eventually(is_new, what="the new certificate of the caller")
        assert channel.num_outdated == 1
        echo.may_end.set()
        assert await call.read() == b"x"
        assert await call.read() is grpc.aio.EOF
        await eventually(lambda: channel.num_outdated == 0, what="the end of the channel before")


async def test_closing_ends_calls_on_the_channels_before(own_deployment: Deployment) -> None:
    async with echoing(own_deployment.service("backend")) as address:
        channel = SecuredChannel(address, own_deployment.caller("alice"), ())
        call: Any = channel.unary_stream(f"/{SERVICE}/StreamProgress")(b"x")
        assert await call.read() == b"x"
        before = channel.get_state()
        authority = own_deployment.file("ca.crt")
        authority.write_bytes(authority.read_bytes() + b"\n")
        await eventually(lambda: channel.get_state() is not before, what="a new channel beneath")
        await channel.close()
        assert call.done()


async def test_new_token_of_a_caller_is_sent_without_a_new_channel(own_deployment: Deployment) -> None:
    async with (
        echoing(own_deployment.service("backend")) as address,
        open_channel(address, own_deployment.caller("alice")) as channel,
    ):
        assert await _hello(channel) == b"hello"
        own_deployment.add("alice", Scope.READ, replace=True)
        await eventually(lambda: _is_let_in(channel), what="the new token")


async def _is_let_in(channel: grpc.aio.Channel) -> bool:
    try:
        return await _hello(channel) == b"hello"
    except UnauthenticatedError:
        return False


async def test_revoked_token_is_refused_and_its_streams_end_and_those_of_others_go_on(
    own_deployment: Deployment,
) -> None:
    echo = Echo()
    async with (
        echoing(own_deployment.service("backend"), echo) as address,
        open_channel(address, own_deployment.caller("alice")) as alice,
        open_channel(address, own_deployment.caller("bob")) as bob,
    ):
        streams: list[Any] = [channel.unary_stream(f"/{SERVICE}/StreamProgress") for channel in (alice, bob)]
        calls = [stream(b"x") for stream in streams]
        for call in calls:
            assert await call.read() == b"x"
        revoke_token(own_deployment.table, "alice")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(calls[0].read(), PATIENCE_S)
        assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert not await _is_let_in(alice)
        assert await _is_let_in(bob)
        assert not calls[1].done()
        echo.may_end.set()
        assert await calls[1].read() == b"x"


async def test_added_token_is_known_within_a_moment(own_deployment: Deployment) -> None:
    async with echoing(own_deployment.service("backend")) as address:
        own_deployment.add("carol", Scope.READ)
        async with open_channel(address, own_deployment.caller("carol")) as channel:
            await eventually(lambda: _is_let_in(channel), what="the new token")


async def test_damaged_table_keeps_the_one_before(own_deployment: Deployment) -> None:
    now = itertools.count(step=2 * LOOK_EVERY_S)  # whoever asks looks at the disk
    async with (
        echoing(own_deployment.service("backend"), clock=lambda: next(now)) as address,
        open_channel(address, own_deployment.caller("alice")) as channel,
    ):
        before = own_deployment.table.read_bytes()
        for content in (b"{", b"", before[:-20], own_deployment.file("alice.token").read_bytes()):
            own_deployment.table.write_bytes(content)
            assert await _is_let_in(channel)
        own_deployment.table.write_bytes(TokenTable(()).to_bytes())
        assert not await _is_let_in(channel)


def test_server_says_what_will_not_do_for_long(own_deployment: Deployment) -> None:
    security = ServerSecurity(own_deployment.service("backend"))
    assert security.problems() == []
    own_deployment.file("backend.key").chmod(0o640)
    (problem,) = security.problems()
    assert "chmod 600" in problem
    renew_certificates(own_deployment.directory, days=10)
    (problem,) = ServerSecurity(own_deployment.service("backend")).problems()
    assert "the certificate of ktrdr backend expires on" in problem
