//! Between our types and protobuf's. What comes in is checked here for being whole; what it means is not our
//! business.

use std::time::Duration;

use image::layout::FileIdentity;
use image::{CheckpointId, Sync, Term};

use crate::message::*;
use crate::proto;
use crate::token::{GuardToken, TokenHash};

/// A message that lacks what it can't be without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message {0}")]
pub struct Malformed(pub(crate) &'static str);

impl From<CheckpointId> for proto::Checkpoint {
    fn from(id: CheckpointId) -> Self {
        Self { term: id.term.0, epoch: id.epoch.0 }
    }
}

impl From<proto::Checkpoint> for CheckpointId {
    fn from(id: proto::Checkpoint) -> Self {
        Self::new(id.term, id.epoch)
    }
}

/// The 32 bytes of a token or of a hash.
fn secret(bytes: &[u8]) -> Result<[u8; 32], Malformed> {
    bytes.try_into().map_err(|_| Malformed("has a guard token or hash that is not 32 bytes long"))
}

impl From<FromPrimary> for proto::FromPrimary {
    fn from(message: FromPrimary) -> Self {
        use proto::from_primary::Message;
        let message = match message {
            FromPrimary::Frames(frames) => Message::Frames(frames),
            FromPrimary::AppExited { how, silenced } => {
                Message::AppExited(proto::AppExited { how: Some(how.into()), silenced })
            }
            FromPrimary::GuardArmed(GuardArmed { term, token_hash }) => {
                let token_hash = token_hash.0.to_vec().into();
                Message::GuardArmed(proto::GuardArmed { term: term.0, token_hash })
            }
            FromPrimary::HandedOver => Message::HandedOver(proto::HandedOver {}),
            FromPrimary::Arrived(packets) => {
                let packets = packets.into_iter().map(|ArrivedPacket { since, packet }| {
                    proto::ArrivedPacket { since: since.map(Into::into), packet }
                });
                Message::Arrived(proto::ArrivedPackets { packets: packets.collect() })
            }
            FromPrimary::Changes(Changes { id, sync, frames, last }) => {
                let parent = match sync {
                    Sync::Full => None,
                    Sync::Since(parent) => Some(parent.into()),
                };
                Message::Changes(proto::Changes { id: Some(id.into()), parent, frames, last })
            }
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<proto::FromPrimary> for FromPrimary {
    type Error = Malformed;

    fn try_from(message: proto::FromPrimary) -> Result<Self, Malformed> {
        use proto::from_primary::Message;
        match message.message.ok_or(Malformed("is empty or of a kind that is not known here"))? {
            Message::Hello(_) => Err(Malformed("says hello a second time")),
            Message::Frames(frames) => Ok(Self::Frames(frames)),
            Message::AppExited(proto::AppExited { how, silenced }) => {
                let how = how.ok_or(Malformed("does not say how the app ended"))?.into();
                Ok(Self::AppExited { how, silenced })
            }
            Message::GuardArmed(proto::GuardArmed { term, token_hash }) => {
                let token_hash = TokenHash(secret(&token_hash)?);
                Ok(Self::GuardArmed(GuardArmed { term: Term(term), token_hash }))
            }
            Message::HandedOver(proto::HandedOver {}) => Ok(Self::HandedOver),
            Message::Arrived(proto::ArrivedPackets { packets }) => {
                let packets = packets.into_iter().map(|proto::ArrivedPacket { since, packet }| {
                    ArrivedPacket { since: since.map(Into::into), packet }
                });
                Ok(Self::Arrived(packets.collect()))
            }
            Message::Changes(proto::Changes { id, parent, frames, last }) => {
                let id = id.ok_or(Malformed("has changes of an epoch without a name"))?.into();
                let sync = parent.map_or(Sync::Full, |parent| Sync::Since(parent.into()));
                Ok(Self::Changes(Changes { id, sync, frames, last }))
            }
        }
    }
}

impl From<Exit> for proto::app_exited::How {
    fn from(how: Exit) -> Self {
        match how {
            Exit::Code(code) => Self::Code(code),
            Exit::Signal(signal) => Self::Signal(signal),
        }
    }
}

impl From<proto::app_exited::How> for Exit {
    fn from(how: proto::app_exited::How) -> Self {
        match how {
            proto::app_exited::How::Code(code) => Self::Code(code),
            proto::app_exited::How::Signal(signal) => Self::Signal(signal),
        }
    }
}

impl From<Hello> for proto::Hello {
    fn from(hello: Hello) -> Self {
        let Hello {
            protocol_version,
            release,
            app,
            term,
            owner,
            incarnation,
            primary_name,
            host_facts,
            consistency,
            heartbeat,
            missed,
            guard_token_hash,
            has_register,
            fencing,
            network,
            structures,
            policy,
        } = hello;
        Self {
            protocol_version,
            release,
            app,
            term: term.0,
            owner,
            incarnation,
            primary_name,
            host_facts,
            consistency: proto::Consistency::from(consistency).into(),
            heartbeat_us: u64::try_from(heartbeat.as_micros()).unwrap_or(u64::MAX),
            missed,
            guard_token_hash: guard_token_hash.map(|hash| hash.0.to_vec()).unwrap_or_default().into(),
            has_register,
            fencing,
            network: network.map(|ServiceNetwork { address, link, gateway }| proto::ServiceNetwork {
                address,
                link,
                gateway: gateway.unwrap_or_default(),
            }),
            structures: structures.map(|Structures { command }| proto::Structures { command }),
            policy,
        }
    }
}

impl TryFrom<proto::Hello> for Hello {
    type Error = Malformed;

    fn try_from(hello: proto::Hello) -> Result<Self, Malformed> {
        let consistency = hello.consistency();
        let hash = &hello.guard_token_hash;
        let guard_token_hash = if hash.is_empty() { None } else { Some(TokenHash(secret(hash)?)) };
        Ok(Self {
            protocol_version: hello.protocol_version,
            release: hello.release,
            app: hello.app,
            term: Term(hello.term),
            owner: hello.owner,
            incarnation: hello.incarnation,
            primary_name: hello.primary_name,
            host_facts: hello.host_facts,
            consistency: consistency.try_into()?,
            heartbeat: Duration::from_micros(hello.heartbeat_us),
            missed: hello.missed,
            guard_token_hash,
            has_register: hello.has_register,
            fencing: hello.fencing,
            network: hello.network.map(|network| ServiceNetwork {
                address: network.address,
                link: network.link,
                gateway: (!network.gateway.is_empty()).then_some(network.gateway),
            }),
            structures: hello.structures.map(|proto::Structures { command }| Structures { command }),
            policy: hello.policy,
        })
    }
}

impl From<Consistency> for proto::Consistency {
    fn from(consistency: Consistency) -> Self {
        match consistency {
            Consistency::Timeline => Self::Timeline,
            Consistency::Strong => Self::Strong,
        }
    }
}

impl TryFrom<proto::Consistency> for Consistency {
    type Error = Malformed;

    fn try_from(consistency: proto::Consistency) -> Result<Self, Malformed> {
        match consistency {
            proto::Consistency::Timeline => Ok(Self::Timeline),
            proto::Consistency::Strong => Ok(Self::Strong),
            proto::Consistency::Unspecified => {
                Err(Malformed("asks for a consistency that is not known here"))
            }
        }
    }
}

impl From<FromStandby> for proto::FromStandby {
    fn from(message: FromStandby) -> Self {
        use proto::from_standby::Message;
        let message = match message {
            FromStandby::Ack(id) => Message::Ack(id.into()),
            FromStandby::EpochRefused(EpochRefused { id, why, lacks }) => {
                let lacks = lacks.into_iter().map(Into::into).collect();
                Message::EpochRefused(proto::EpochRefused { id: Some(id.into()), why, lacks })
            }
            FromStandby::Progress(progress) => Message::Progress(progress.into()),
            FromStandby::Serving(term) => Message::Serving(proto::Serving { term: term.0 }),
            FromStandby::Refusal(refusal) => Message::Refusal(refusal.into()),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<proto::FromStandby> for FromStandby {
    type Error = Malformed;

    fn try_from(message: proto::FromStandby) -> Result<Self, Malformed> {
        use proto::from_standby::Message;
        match message.message.ok_or(Malformed("is empty or of a kind that is not known here"))? {
            Message::Welcome(_) => Err(Malformed("says welcome a second time")),
            Message::Ack(id) => Ok(Self::Ack(id.into())),
            Message::EpochRefused(proto::EpochRefused { id, why, lacks }) => {
                let id = id.ok_or(Malformed("refuses an epoch without naming it"))?.into();
                let lacks = lacks.into_iter().map(Into::into).collect();
                Ok(Self::EpochRefused(EpochRefused { id, why, lacks }))
            }
            Message::Progress(progress) => Ok(Self::Progress(progress.into())),
            Message::Serving(proto::Serving { term }) => Ok(Self::Serving(Term(term))),
            Message::Refusal(refusal) => Ok(Self::Refusal(refusal.into())),
        }
    }
}

impl From<FileIdentity> for proto::File {
    fn from(FileIdentity { path, size, build_id }: FileIdentity) -> Self {
        Self { path: path.into(), size, build_id: build_id.map(|id| id.into_vec().into()) }
    }
}

impl From<proto::File> for FileIdentity {
    fn from(proto::File { path, size, build_id }: proto::File) -> Self {
        Self { path: path.into(), size, build_id: build_id.map(|id| serde_bytes::ByteBuf::from(id.to_vec())) }
    }
}

impl From<Progress> for proto::Progress {
    fn from(Progress { receiving, received_bytes, applied }: Progress) -> Self {
        Self { receiving: receiving.map(Into::into), received_bytes, applied: applied.map(Into::into) }
    }
}

impl From<proto::Progress> for Progress {
    fn from(proto::Progress { receiving, received_bytes, applied }: proto::Progress) -> Self {
        Self { receiving: receiving.map(Into::into), received_bytes, applied: applied.map(Into::into) }
    }
}

impl From<Welcome> for proto::Welcome {
    fn from(welcome: Welcome) -> Self {
        let Welcome { protocol_version, release, standby_name, incarnation, held, host_facts } = welcome;
        let held = held.map(Into::into);
        Self { protocol_version, release, standby_name, incarnation, held, host_facts }
    }
}

impl From<proto::Welcome> for Welcome {
    fn from(welcome: proto::Welcome) -> Self {
        let proto::Welcome { protocol_version, release, standby_name, incarnation, held, host_facts } =
            welcome;
        let held = held.map(Into::into);
        Self { protocol_version, release, standby_name, incarnation, held, host_facts }
    }
}

impl From<Refusal> for proto::Refusal {
    fn from(Refusal { code, why, way_out }: Refusal) -> Self {
        use proto::RefusalCode as Wire;
        let code = match code {
            RefusalCode::Version => Wire::Version.into(),
            RefusalCode::Term => Wire::Term.into(),
            RefusalCode::Host => Wire::Host.into(),
            RefusalCode::Busy => Wire::Busy.into(),
            RefusalCode::Fencing => Wire::Fencing.into(),
            RefusalCode::Guard => Wire::Guard.into(),
            RefusalCode::Stopping => Wire::Stopping.into(),
            RefusalCode::Register => Wire::Register.into(),
            RefusalCode::Other(code) => code,
        };
        Self { code, why, way_out }
    }
}

impl From<proto::Refusal> for Refusal {
    fn from(proto::Refusal { code, why, way_out }: proto::Refusal) -> Self {
        use proto::RefusalCode as Wire;
        let code = match Wire::try_from(code) {
            Ok(Wire::Version) => RefusalCode::Version,
            Ok(Wire::Term) => RefusalCode::Term,
            Ok(Wire::Host) => RefusalCode::Host,
            Ok(Wire::Busy) => RefusalCode::Busy,
            Ok(Wire::Fencing) => RefusalCode::Fencing,
            Ok(Wire::Guard) => RefusalCode::Guard,
            Ok(Wire::Stopping) => RefusalCode::Stopping,
            Ok(Wire::Register) => RefusalCode::Register,
            Ok(Wire::Unspecified) | Err(_) => RefusalCode::Other(code),
        };
        Self { code, why, way_out }
    }
}

impl From<Heartbeat> for proto::Heartbeat {
    fn from(beat: Heartbeat) -> Self {
        let Heartbeat { app, term, sequence, sent_at_ns, newest_captured, engine } = beat;
        let engine = match engine {
            EngineState::Starting => proto::EngineState::Starting,
            EngineState::Syncing => proto::EngineState::Syncing,
            EngineState::Capturing => proto::EngineState::Capturing,
            EngineState::Unprotected => proto::EngineState::Unprotected,
            EngineState::Stuck => proto::EngineState::Stuck,
            EngineState::Stopping => proto::EngineState::Stopping,
        };
        let newest_captured = newest_captured.map(Into::into);
        Self { app, term: term.0, sequence, sent_at_ns, newest_captured, engine: engine.into() }
    }
}

impl TryFrom<proto::Heartbeat> for Heartbeat {
    type Error = Malformed;

    fn try_from(beat: proto::Heartbeat) -> Result<Self, Malformed> {
        let engine = match beat.engine() {
            proto::EngineState::Starting => EngineState::Starting,
            proto::EngineState::Syncing => EngineState::Syncing,
            proto::EngineState::Capturing => EngineState::Capturing,
            proto::EngineState::Unprotected => EngineState::Unprotected,
            proto::EngineState::Stuck => EngineState::Stuck,
            proto::EngineState::Stopping => EngineState::Stopping,
            proto::EngineState::Unspecified => return Err(Malformed("has an engine state not known here")),
        };
        let proto::Heartbeat { app, term, sequence, sent_at_ns, newest_captured, engine: _ } = beat;
        let newest_captured = newest_captured.map(Into::into);
        Ok(Self { app, term: Term(term), sequence, sent_at_ns, newest_captured, engine })
    }
}

impl From<HeartbeatAnswer> for proto::HeartbeatAnswer {
    fn from(answer: HeartbeatAnswer) -> Self {
        let HeartbeatAnswer { sequence, sent_at_ns, term, held, state } = answer;
        let state = match state {
            StandbyState::Empty => proto::StandbyState::Empty,
            StandbyState::Syncing => proto::StandbyState::Syncing,
            StandbyState::Ready => proto::StandbyState::Ready,
            StandbyState::TakingOver => proto::StandbyState::TakingOver,
            StandbyState::Serving => proto::StandbyState::Serving,
            StandbyState::Stopping => proto::StandbyState::Stopping,
        };
        Self { sequence, sent_at_ns, term: term.0, held: held.map(Into::into), state: state.into() }
    }
}

impl TryFrom<proto::HeartbeatAnswer> for HeartbeatAnswer {
    type Error = Malformed;

    fn try_from(answer: proto::HeartbeatAnswer) -> Result<Self, Malformed> {
        let state = match answer.state() {
            proto::StandbyState::Empty => StandbyState::Empty,
            proto::StandbyState::Syncing => StandbyState::Syncing,
            proto::StandbyState::Ready => StandbyState::Ready,
            proto::StandbyState::TakingOver => StandbyState::TakingOver,
            proto::StandbyState::Serving => StandbyState::Serving,
            proto::StandbyState::Stopping => StandbyState::Stopping,
            proto::StandbyState::Unspecified => return Err(Malformed("has a standby state not known here")),
        };
        let proto::HeartbeatAnswer { sequence, sent_at_ns, term, held, state: _ } = answer;
        Ok(Self { sequence, sent_at_ns, term: Term(term), held: held.map(Into::into), state })
    }
}

impl From<Silent> for proto::SilentRequest {
    fn from(Silent { app, term, token }: Silent) -> Self {
        Self { app, term: term.0, token: token.as_bytes().to_vec().into() }
    }
}

impl TryFrom<proto::SilentRequest> for Silent {
    type Error = Malformed;

    fn try_from(silent: proto::SilentRequest) -> Result<Self, Malformed> {
        let token = GuardToken::from_bytes(secret(&silent.token)?);
        Ok(Self { app: silent.app, term: Term(silent.term), token })
    }
}
