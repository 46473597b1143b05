"""What a server and an error are told: own time-outs, parameters of connections, verbs, times."""

from __future__ import annotations

from importlib import import_module
from threading import Timer
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

import holdfast
from holdfast.adapters.sqlalchemy import instrument
from holdfast.domain.errors import OutcomeUnknown
from holdfast.testing.proxy import FaultProxy
from tests.adapters import test_sqlalchemy_sync as sync
from tests.adapters.test_sqlalchemy import NAME, engine_for, options, url

pytestmark = pytest.mark.real_time

ASKED = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
HELD = {"asyncpg": "HeldConnection", "psycopg": "AsyncConnection"}


# -- time-outs that are set by hand --------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize(
    "setting",
    ["SET LOCAL statement_timeout = 300", "SELECT set_config('statement_timeout', '300', true)"],
)
def test_a_time_out_that_is_set_by_hand_is_not_loosened(
    postgres: Any, driver: str, setting: str
) -> None:
    with (
        sync.engine_for(postgres, driver, pool_size=1) as engine,
        holdfast.timeout(20.0),
        engine.connect() as connection,
    ):
        assert 19_000 < (connection.execute(ASKED).scalar() or 0) <= 20_000
        connection.execute(text(setting))
        with holdfast.timeout(5.0):
            assert connection.execute(ASKED).scalar() == 300
        assert connection.execute(ASKED).scalar() == 300
        connection.rollback()
        assert 18_000 < (connection.execute(ASKED).scalar() or 0) <= 20_000


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_time_out_of_the_session_is_learnt_anew(postgres: Any, driver: str) -> None:
    with sync.engine_for(postgres, driver, pool_size=1) as engine:
        with holdfast.timeout(20.0), engine.begin() as connection:
            connection.execute(ASKED)
            connection.execute(text("/* by hand */ set Statement_Timeout TO 300"))
        with holdfast.timeout(20.0), engine.begin() as connection:
            assert connection.execute(ASKED).scalar() == 300
            connection.execute(text("RESET ALL"))
        with holdfast.timeout(20.0), engine.begin() as connection:
            assert 18_000 < (connection.execute(ASKED).scalar() or 0) <= 20_000
        with engine.begin() as connection:
            assert connection.execute(ASKED).scalar() == 0


def test_what_was_told_before_a_savepoint_is_taken_back_after_it(postgres: Any) -> None:
    with sync.engine_for(postgres, "psycopg") as engine, engine.connect() as connection:
        with holdfast.timeout(20.0):
            connection.execute(ASKED)
            with connection.begin_nested() as inner:
                inner.rollback()
        assert connection.execute(ASKED).scalar() == 0, "a bound that is over holds on"


# -- connecting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_host_that_is_not_heard_of_is_given_up(postgres: Any, driver: str) -> None:
    def parameters(engine: Any) -> Any:
        with engine.connect() as connection:
            info = connection.connection.driver_connection.info
            return info.dsn_parameters if driver == "psycopg2" else info.get_parameters()

    with sync.engine_for(postgres, driver) as engine:
        found = parameters(engine)
        assert found["tcp_user_timeout"] == "10000"
        assert "connect_timeout" not in found
    with sync.engine_for(postgres, driver, connect_args={"tcp_user_timeout": 5000}) as engine:
        assert parameters(engine)["tcp_user_timeout"] == "5000"


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_connections_of_ours_are_made_of_what_the_engine_has(
    postgres: Any, driver: str
) -> None:
    kind = getattr(import_module(f"holdfast.adapters.{driver}"), HELD[driver])
    engine = create_async_engine(url(postgres, driver), **options(driver))
    seen: list[str] = []

    @event.listens_for(instrument(engine, connection_class=kind).sync_engine, "do_connect")
    def later(dialect: Any, record: Any, args: Any, parameters: Any) -> None:
        seen.append(parameters["user"])

    async with engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert isinstance(raw, kind)
        assert postgres.backends(NAME) == 1
    assert seen, "listeners of the application were passed over"
    await engine.dispose()


def test_connections_of_ours_in_threads_are_made_of_what_the_engine_has(postgres: Any) -> None:
    kind = import_module("holdfast.adapters.psycopg").Connection
    dsn = postgres.dsn(scheme="postgresql+psycopg")
    engine = instrument(create_engine(dsn), connection_class=kind)
    with holdfast.timeout(5.0), engine.connect() as connection:
        assert isinstance(connection.connection.driver_connection, kind)
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()
    with pytest.raises(TypeError, match="psycopg2 takes no class"):
        instrument(create_engine("postgresql+psycopg2://"), connection_class=kind)


# -- what errors tell ----------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_an_error_tells_the_verb_and_how_long_it_took(postgres: Any, driver: str) -> None:
    with (
        sync.engine_for(postgres, driver) as engine,
        pytest.raises(holdfast.DeadlineExceeded) as caught,
        holdfast.timeout(0.3),
        engine.connect() as connection,
    ):
        connection.execute(text("/* a */ select pg_sleep(60), 'a secret'"))
    cause = caught.value.cause
    assert cause.scope.endswith("/SELECT")
    assert 0.05 < cause.budget <= 0.3
    assert cause.elapsed > 0.05
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_commit_that_is_lost_tells_how_long_it_took(postgres: Any, driver: str) -> None:
    with (  # noqa: PT012
        FaultProxy(postgres.host, postgres.port) as proxy,
        sync.engine_for(postgres, driver, proxy.port) as engine,
        pytest.raises(OutcomeUnknown) as caught,
        holdfast.timeout(0.4),
        engine.begin() as connection,
    ):
        connection.execute(text("SELECT 1"))
        proxy.to_client.stall()
        Timer(0.5, proxy.cut).start()
    assert 0 < caught.value.cause.budget <= 0.4
    assert caught.value.cause.elapsed > 0.3


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_connect_that_is_cut_is_not_told_as_a_wait_for_a_place(
    postgres: Any, driver: str
) -> None:
    async with FaultProxy(postgres.host, postgres.port) as proxy:
        proxy.to_client.stall()
        async with engine_for(postgres, driver, proxy.port) as engine:
            with pytest.raises(holdfast.DeadlineExceeded) as caught:
                async with holdfast.timeout(0.2):
                    await engine.connect()
            assert caught.value.trail is not None
            told = str(caught.value.trail)
            assert "tcp.connect" in told
            assert "pool" not in told


def test_a_connect_that_came_too_late_tells_how_long_it_took(postgres: Any) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        proxy.to_client.stall()
        with (
            sync.engine_for(postgres, "psycopg2", proxy.port) as engine,
            pytest.raises(holdfast.DeadlineExceeded) as caught,
            holdfast.timeout(0.3),
        ):
            engine.connect()
    assert 0 < caught.value.cause.budget <= 0.3
    assert caught.value.cause.elapsed > 0.3
