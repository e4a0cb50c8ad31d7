"""The model store's part of the client: everything of ModelService but uploads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
from ktrdr.models.v1 import model_service_pb2, model_service_pb2_grpc

from ktrdr_client import decode_models
from ktrdr_client.calls import call_unary, problem_of
from ktrdr_client.model_pull import OnRetry, OpenCall, Progress, PullPolicy, pull_file, pull_files
from ktrdr_client.model_types import Garbage, Model, ModelPage, ModelVerification
from ktrdr_core.errors import UnavailableError
from ktrdr_core.rpc.chunks import decode_chunk
from ktrdr_core.rpc.codec_choice import Compression, codec_of
from ktrdr_core.storage.model_query import ModelQuery
from ktrdr_core.wire.models import model_query_to_proto

MODELS_PAGE_SIZE = 200
_WHOLE_STORE_TIMEOUT_S = 600.0  # reads or removes what may be many gigabytes
ALL_MODELS = ModelQuery()
PULL_POLICY = PullPolicy()


class ModelCalls:
    """Methods of AsyncClient."""

    _models: model_service_pb2_grpc.ModelServiceAsyncStub
    _timeout_s: float

    async def get_model(self, name: str) -> Model:
        """Return one model, by store name, set and alias, strategy (its newest), or model id."""
        response = await call_unary(
            self._models.GetModel, model_service_pb2.GetModelRequest(name=name), timeout_s=self._timeout_s
        )
        return decode_models.model(response.model)

    async def list_models_page(
        self, query: ModelQuery = ALL_MODELS, *, page_size: int = MODELS_PAGE_SIZE, page_token: str = ""
    ) -> ModelPage:
        """Return one page of models.

        Args:
            query: Which ones, in which order.
            page_size: At most so many, 1 to 1000; a page may have fewer.
            page_token: `next_page_token` of the page before, of the same query; "" begins.
        """
        request = model_query_to_proto(query, page_size=page_size, page_token=page_token)
        return decode_models.model_page(await call_unary(self._models.ListModels, request, timeout_s=self._timeout_s))

    async def iterate_models(
        self, query: ModelQuery = ALL_MODELS, *, page_size: int = MODELS_PAGE_SIZE
    ) -> AsyncIterator[Model]:
        """Yield models page by page; each that is there all the while is yielded once."""
        token = ""
        while True:
            page = await self.list_models_page(query, page_size=page_size, page_token=token)
            for model in page.models:
                yield model
            token = page.next_page_token
            if not token:
                return

    async def list_models(self, query: ModelQuery = ALL_MODELS, *, limit: int | None = None) -> list[Model]:
        """Return models, newest first unless `query` says otherwise; `limit` None means all."""
        found: list[Model] = []
        token = ""
        while limit is None or len(found) < limit:
            size = MODELS_PAGE_SIZE if limit is None else min(MODELS_PAGE_SIZE, limit - len(found))
            page = await self.list_models_page(query, page_size=size, page_token=token)
            found.extend(page.models)
            token = page.next_page_token
            if not token:
                break
        return found

    async def delete_model(self, name: str, *, force: bool = False) -> None:
        """Delete a version, or an artifact that is kept aside; `force` also if an alias points at it.

        Raises:
            ModelNotFoundError: There is none.
            ModelReferencedError: An alias other than `latest` points at it.
        """
        request = model_service_pb2.DeleteModelRequest(name=name, force=force)
        await call_unary(self._models.DeleteModel, request, timeout_s=max(self._timeout_s, 60.0))

    async def set_model_alias(
        self, parent: str, alias: str, version: int, *, expected_version: int | None = None
    ) -> Model | None:
        """Point an alias at a version and return the model, or remove it and return None.

        Args:
            parent: Strategy and set, for example "neuro_mean_reversion/EURUSD_1h".
            alias: For example "champion".
            version: Version it shall point at; 0 removes it.
            expected_version: Version it must point at now; 0: it must not exist. None: whatever it points at.

        Raises:
            ModelNotFoundError: There is no such version.
            WriteConflictError: It does not point at `expected_version`.
        """
        request = model_service_pb2.SetModelAliasRequest(
            parent=parent, alias=alias, version=version, expected_version=expected_version
        )
        response = await call_unary(self._models.SetModelAlias, request, timeout_s=self._timeout_s)
        return decode_models.model(response.model) if response.HasField("model") else None

    async def verify_model(self, name: str) -> ModelVerification:
        """Return whether every file of a model is what was published; the backend reads all of them."""
        response = await call_unary(
            self._models.VerifyModel,
            model_service_pb2.VerifyModelRequest(name=name),
            timeout_s=max(self._timeout_s, _WHOLE_STORE_TIMEOUT_S),
        )
        return decode_models.model_verification(response)

    async def collect_garbage(
        self, *, dry_run: bool = False, keep_versions: int | None = None, kept_aside_days: int | None = None
    ) -> list[Garbage]:
        """Remove what nothing refers to from the model store, and return what was removed.

        Args:
            dry_run: Remove nothing, return what would be.
            keep_versions: Also remove versions that are not among so many newest ones of their set and that no alias
                points at; None keeps them.
            kept_aside_days: Remove artifacts kept aside for so many days; None means 30.
        """
        response = await call_unary(
            self._models.CollectGarbage,
            model_service_pb2.CollectGarbageRequest(
                dry_run=dry_run, keep_versions=keep_versions, kept_aside_days=kept_aside_days
            ),
            timeout_s=max(self._timeout_s, _WHOLE_STORE_TIMEOUT_S),
        )
        return [decode_models.garbage(each) for each in response.removed]

    async def download_model(
        self, name: str, file: str, *, read_offset: int = 0, compression: Compression = Compression.AUTO
    ) -> AsyncIterator[bytes]:
        """Yield the bytes of one file of a model, from `read_offset` on, each chunk checked; `pull_model` does more.

        Args:
            name: As in get_model.
            file: As in `Model.files`.
            read_offset: First byte wanted.
            compression: How the chunks travel.

        Raises:
            CorruptDataError: A chunk arrived damaged, or the backend's file is not what was published.
            UnavailableError: Nothing came for too long.
        """
        call = self._open_download(name, compression)(file, read_offset)
        offset = read_offset
        is_first = True
        try:
            while True:
                async with asyncio.timeout(PULL_POLICY.idle_timeout_s):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    return
                message = cast(model_service_pb2.DownloadModelResponse, response)
                if not is_first:  # the first one says which file it is
                    raw = await asyncio.to_thread(decode_chunk, message.chunk, offset)
                    offset += len(raw)
                    yield raw
                is_first = False
        except TimeoutError:
            raise UnavailableError(
                f"nothing of {file} came for {PULL_POLICY.idle_timeout_s:g} s; go on at {offset}"
            ) from None
        except grpc.RpcError as error:
            raise problem_of(error) from None
        finally:
            call.cancel()

    async def pull_model(
        self,
        name: str,
        directory: Path,
        *,
        files: Collection[str] | None = None,
        compression: Compression = Compression.AUTO,
        policy: PullPolicy = PULL_POLICY,
        progress: Progress | None = None,
        on_retry: OnRetry | None = None,
    ) -> Path:
        """Bring a model into `directory`, verified and durable, and return the directory.

        A broken stream is gone on with, also in a later call: what has arrived lies in `.<file>.part` until everything
        is whole. Files that are there already are not fetched again; a damaged one is replaced.

        Args:
            name: As in get_model.
            directory: Made if missing; the files lie directly in it. It may hold no other model.
            files: Only these of `Model.files`; None means all.
            compression: How the chunks travel.
            policy: When a broken stream is opened again and when it is given up.
            progress: Told the bytes that are here and all bytes, at each change.
            on_retry: Told why a stream is opened again, before each pause.

        Raises:
            InvalidInputError: `directory` has another model, or there is no such file.
            ModelNotFoundError: There is no such model, or it was deleted meanwhile.
            CorruptDataError: A file arrived twice with another SHA-256, or the backend's is not what was published.
            UnavailableError: Nothing came for `policy.give_up_after_s`.
            StorageError: The disk here takes no files.
            WriteConflictError: Another process pulls into the same directory.
        """
        model = await self.get_model(name)
        await pull_files(
            self._open_download(model.name, compression),
            model,
            directory,
            files=files,
            policy=policy,
            progress=progress,
            on_retry=on_retry,
        )
        return directory

    async def download_model_file(
        self,
        name: str,
        file: str,
        path: Path,
        *,
        compression: Compression = Compression.AUTO,
        policy: PullPolicy = PULL_POLICY,
        progress: Progress | None = None,
        on_retry: OnRetry | None = None,
    ) -> Path:
        """Bring one file of a model to `path`, whole, verified and durable, and return it; see pull_model.

        A file that is there is replaced.
        """
        model = await self.get_model(name)
        await pull_file(
            self._open_download(model.name, compression),
            model,
            file,
            path,
            policy=policy,
            progress=progress,
            on_retry=on_retry,
        )
        return path

    def _open_download(self, name: str, compression: Compression) -> OpenCall:
        def open_call(
            file: str, read_offset: int
        ) -> grpc.aio.UnaryStreamCall[model_service_pb2.DownloadModelRequest, model_service_pb2.DownloadModelResponse]:
            return self._models.DownloadModel(
                model_service_pb2.DownloadModelRequest(
                    name=name, file=file, read_offset=read_offset, codec=codec_of(compression)
                )
            )

        return open_call
