"""The composition root: the only place where concrete parts are put together.

A daemon either *leads* (it founded the cluster: it plans, heads the ring and answers) or *follows* (it runs
windows and passes questions on). Both run a Worker. What starts last is closed first; before that, whatever
may take long is called off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc

from edged import __version__
from edged.api.server import HttpServer
from edged.backend.native import NativeWindow
from edged.backend.residency import Placing
from edged.backend.source import WindowSource
from edged.cluster.admission import Admission
from edged.cluster.assignment import Endpoint
from edged.cluster.coordinator import Coordinator
from edged.cluster.discovery import Announcement, DiscoveredPeer, Discovery, Role
from edged.cluster.heart import Heart
from edged.cluster.heartbeat_service import HeartbeatService
from edged.cluster.identity import Identity
from edged.cluster.join_server import JoinServer
from edged.cluster.known_models import KnownModels
from edged.cluster.link_service import LinkService
from edged.cluster.link_survey import LinkSurvey, Place
from edged.cluster.member_client import MemberClient
from edged.cluster.member_service import MemberService
from edged.cluster.membership import Membership
from edged.cluster.neighbours import Neighbours
from edged.cluster.ring_planner import RingPlanner
from edged.cluster.roster import MembershipRoster
from edged.cluster.worker import Worker
from edged.device.good_guest import GoodGuest
from edged.device.layer_keeper import LayerKeeper
from edged.device.local_device import (
    available_memory,
    measure,
    memory_total,
    own_memory,
    profile,
    remembered,
)
from edged.device.speed_record import Measured
from edged.errors import EdgedError, PlanError, StalledError
from edged.frontdoor.service import FrontDoorService
from edged.node.belonging import coordinator_address, leads, settle
from edged.node.follow import Follow
from edged.node.keys import OwnersKeys
from edged.node.last_model import LastModel
from edged.node.lead import Lead
from edged.node.ports import check_ports, http_key
from edged.node.process import (
    StoppedEarly,
    StopRequest,
    allow_open_files,
    leave_early,
    log_to,
    only_one,
    stop_signals,
)
from edged.node.pulse import Pulse
from edged.planning.context import CHUNK_ALONE
from edged.planning.plan import ContextOptions
from edged.planning.profile import DeviceProfile
from edged.ring.grpc_transport import GrpcTransport
from edged.ring.ring import Result
from edged.rpc import edged_pb2_grpc
from edged.rpc.channel import connect
from edged.rpc.server import peer_device, serve, serve_local
from edged.serving.head import Head
from edged.settings import Settings
from edged.store.catalogue import Catalogue
from edged.store.manifest import Manifest
from edged.store.probe import Rehearsals, try_windows
from edged.store.service import StoreService

RPC_THREADS = 64  # each link in, each answer under way and each layer being sent holds one

Say = Callable[[str], None]
Register = Callable[[grpc.Server], None]


def run_daemon(settings: Settings, say: Say) -> None:
    """Runs until SIGINT or SIGTERM. Raises EdgedError where it cannot start; leaves nothing behind."""
    allow_open_files()
    try:
        with (
            StopRequest() as stop,
            stop.on_signals(),
            only_one(settings.home),
            log_to(settings, say),
        ):
            with stop_signals(leave_early()):  # it may take half a minute to find and ask the founder
                check_ports(settings, leads(settings))
                identity = settle(settings, say)
                measured = _measured(settings, say)
            with ExitStack() as stack:
                Daemon(settings, identity, measured, say, stop, stack).start()
                stop.wait()
                say("stopping")
    except StoppedEarly:
        pass
    say("stopped")


class Daemon:
    """One device's parts. `stack` closes them, the last started first."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        measured: Measured,
        say: Say,
        stop: StopRequest,
        stack: ExitStack,
    ) -> None:
        self._settings = settings
        self._say = say
        self._stop = stop
        self._stack = stack
        self._identity = identity
        self._catalogue = Catalogue(settings.home)
        self._neighbours = Neighbours(self._identity)
        self._transport = GrpcTransport(self._neighbours.open_channel, peer_device)
        self._measured = measured
        self._held: Callable[[], int] = lambda: 0  # bytes of the windows loaded here
        self._call_off: list[Callable[[], None]] = []  # of what may take long, before anything is closed

    def start(self) -> None:
        settings, identity, say = self._settings, self._identity, self._say
        say(f"edged {__version__}: {identity.name} ({identity.device}) of the cluster {identity.cluster}")
        inside, admission = self._lead() if identity.is_founder else (self._follow(), None)
        keys = OwnersKeys(admission, self._stop)
        local = serve_local(settings.socket_path, [_front_door(FrontDoorService(inside, keys))])
        self._stack.callback(local.close)
        memory = self._profile().memory_budget / 2**30
        say(f"listening on port {settings.port}; {settings.threads} threads, {memory:.1f} GiB for models")
        if settings.http is not None:
            self._open_http(inside)
        if settings.model is not None:
            self._load_meanwhile(inside, settings.model)
        elif isinstance(inside, Lead) and (last := LastModel(settings.home).read()) in inside.model_ids():
            self._load_meanwhile(inside, str(last))
        for call_off in self._call_off:
            self._stack.callback(call_off)

    # ---- the two kinds of daemon ------------------------------------------------------------------------

    def _lead(self) -> tuple[Lead, Admission]:
        settings, identity, stack = self._settings, self._identity, self._stack
        head = Head(self._vocabulary, lambda: worker.ring)
        worker = self._worker(
            lambda result: head.deliver(result.batch_id, result.logits, result.failure),
            lambda epoch, error: coordinator.ring_broke(
                epoch, error.message, getattr(error, "device", ""), isinstance(error, StalledError)
            ),
        )
        membership = Membership(lambda event: inside.member_event(event))  # noqa: PLW0108 - made below
        roster = MembershipRoster(membership)
        coordinator = Coordinator(
            profile=self._profile,
            port=settings.port,
            roster=roster,
            local=worker,
            dial=lambda peer: MemberClient(connect(identity, peer.device, peer.host, peer.port), peer.name),
            head=head,
            planner=RingPlanner(
                self._profile,
                lambda: survey.known(),  # noqa: PLW0108 - made below
                self._wish,
                settings.objective,
                settings.rounds,
            ),
            last_epoch=lambda: max(worker.latest_epoch, roster.last_epoch()),
            say=self._say,
            on_ready=LastModel(settings.home).keep,
        )
        models = KnownModels(
            self._catalogue,
            lambda member: connect(identity, member.device, member.host, member.report.port),
        )
        survey = LinkSurvey(
            here=Place(identity.device, identity.name, "", settings.port, run=""),
            others=lambda: map(Place.of, membership.alive()),
            dial=self._dial,
            is_quiet=lambda: not head.is_busy and coordinator.state.state not in ("planning", "loading"),
        )
        stack.callback(survey.close)
        inside = Lead(
            identity=identity,
            catalogue=self._catalogue,
            models=models,
            membership=membership,
            coordinator=coordinator,
            head=head,
            worker=worker,
            survey=survey,
            profile=self._profile,
            port=settings.port,
            rounds=settings.rounds,
            say=self._say,
        )
        stack.callback(membership.close)
        stack.callback(worker.close)
        stack.callback(head.close)
        coordinator.start()
        stack.callback(coordinator.close)
        self._call_off += [models.call_off, coordinator.call_off]
        self._serve(worker, inside, HeartbeatService(membership, inside.view, survey.known_of).add_to)

        admission = Admission(identity)
        stack.callback(JoinServer(identity, admission, settings.join_port).close)
        self._announce("founder", lambda _: None)
        return inside, admission

    def _follow(self) -> Follow:
        settings, identity, stack = self._settings, self._identity, self._stack
        worker = self._worker(
            lambda _: None,
            lambda epoch, error: pulse.ring_broke(epoch, error),  # noqa: PLW0108 - made below
        )
        stack.callback(worker.close)
        addresses = coordinator_address(settings)
        inside = Follow(
            identity=identity,
            catalogue=self._catalogue,
            worker=worker,
            head_at=addresses.likeliest,
            open_head=lambda address: connect(identity, identity.founder, *address),
            say=self._say,
        )
        stack.callback(inside.close)
        self._call_off.append(inside.close)
        self._serve(worker, inside)
        pulse = Pulse(identity.name, settings.port, self._profile, self._catalogue, worker)
        heart = Heart(identity, addresses, pulse.report, inside)
        stack.callback(heart.close)
        self._call_off.append(heart.close)  # the goodbye comes before the ring breaks
        pulse.on_news(heart.beat_now)

        def found(peer: DiscoveredPeer) -> None:
            if peer.device == identity.founder and peer.cluster == identity.cluster:
                heart.coordinator_seen(peer.hosts, peer.port)

        self._announce("member", found)
        return inside

    # ---- pieces of both ---------------------------------------------------------------------------------

    def _worker(
        self, on_result: Callable[[Result], None], on_broken: Callable[[int, EdgedError], None]
    ) -> Worker:
        layers = LayerKeeper(
            self._settings.threads, self._catalogue.images, resident=self._settings.residency != "off"
        )
        self._stack.callback(layers.close)
        rehearsals = Rehearsals()

        def load(
            source: WindowSource, context: ContextOptions, placing: Placing, progress: Callable[[float], None]
        ) -> NativeWindow:
            threads = self._settings.threads
            rehearsals.rehearse(source, context, threads, placing.gpu_layers, wanted=lambda: progress(0.0))
            return layers.load(source, context, placing, progress)

        worker = Worker(
            device=self._identity.device,
            name=self._identity.name,
            catalogue=self._catalogue,
            load_window=load,
            try_model=lambda manifest: try_windows(manifest, self._catalogue),
            transport=self._transport,
            surroundings=self._neighbours,
            on_result=on_result,
            on_broken=on_broken,
            say=self._say,
            place_window=layers.place,
            residency=layers.figures,
        )
        guest = GoodGuest(layers, memory_total(), available_memory, own_memory, self._say)
        self._stack.callback(guest.close)
        self._held = lambda: worker.memory_held
        self._call_off.append(worker.call_off)
        return worker

    def _serve(self, worker: Worker, inside: Lead | Follow, *more: Register) -> None:
        member = MemberService(worker, self._identity.founder, self._dial)
        services: list[Register] = [
            self._transport.add_to,
            lambda server: edged_pb2_grpc.add_MemberServicer_to_server(member, server),
            StoreService(self._catalogue).add_to,
            LinkService().add_to,
            _front_door(FrontDoorService(inside)),
            *more,
        ]
        self._stack.callback(serve(self._identity, services, self._settings.port, RPC_THREADS).close)

    def _dial(self, endpoint: Endpoint) -> grpc.Channel:
        return connect(self._identity, endpoint.device, endpoint.host, endpoint.port)

    def _announce(self, role: Role, found: Callable[[DiscoveredPeer], None]) -> None:
        identity = self._identity
        announcement = Announcement(identity.device, identity.cluster, role, self._settings.port)
        self._stack.callback(Discovery(announcement, found).close)

    def _open_http(self, inside: Lead | Follow) -> None:
        settings = self._settings
        assert settings.http is not None
        key = http_key(settings)
        http = HttpServer(inside, inside, settings.http, key)
        http.start()
        self._stack.callback(http.close)
        inside.http = str(http.address)
        where = "" if key is None else f", with the key in {settings.api_key_path}"
        if key is not None and settings.api_key is not None:
            where = ", with the key in EDGED_API_KEY"
        self._say(f"HTTP at http://{http.address}/v1{where}")

    def _load_meanwhile(self, inside: Lead | Follow, model: str) -> None:
        """The daemon answers while it loads; what goes wrong is said here and shows in `edged status`."""

        def load() -> None:
            try:
                for _ in inside.load(model):
                    pass
            except PlanError:
                pass  # the coordinator has said so
            except EdgedError as error:
                self._say(f"{model} could not be loaded: {error.message}")

        # It ends when the coordinator is called off, or the channel to the head closes.
        threading.Thread(target=load, name="load-model").start()

    def _vocabulary(self, manifest: Manifest) -> Path:
        return self._catalogue.path(manifest.by_name["vocab"].sha256)

    def _wish(self, manifest: Manifest) -> ContextOptions:
        settings = self._settings
        return ContextOptions(
            n_ctx=settings.ctx_for(manifest.n_ctx_train),
            n_seq_max=settings.parallel,
            n_ubatch=CHUNK_ALONE,
            kv_type=settings.kv_type,
            flash_attention=settings.flash_attention,
            wire_type=settings.wire_type,
        )

    def _profile(self) -> DeviceProfile:
        return profile(
            device=self._identity.device,
            name=self._identity.name,
            home=self._settings.home,
            threads=self._settings.threads,
            measured=self._measured,
            cap=self._settings.memory,
            held=self._held(),
            stored=self._catalogue.stored(),
        )


def _measured(settings: Settings, say: Say) -> Measured:
    """What is known of this device; the first starts take the time to find it out. Raises WindowError."""
    known = remembered(settings.threads, settings.memory, settings.home)
    if known is not None and known.is_certain:
        return known
    if known is None:
        say("measuring this device, for a few seconds")
    return measure(settings.threads, settings.memory, settings.home)


def _front_door(service: FrontDoorService) -> Register:
    return lambda server: edged_pb2_grpc.add_FrontDoorServicer_to_server(service, server)
