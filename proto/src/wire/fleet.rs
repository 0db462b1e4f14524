//! Reports, orders and channels on the wire.

use super::{DecodeError, at_most, decode_digest, decode_rack, decode_signed, encode_signed, generated};
use crate::fleet::{
    Follow, GROUPS_MAX, NAME_BYTES_MAX, Order, Orders, Progress, REASON_BYTES_MAX, Report, Stage, cut,
};
use crate::release::Channel;

/// Whole.
const PERMILLE: u32 = 1000;

pub(super) fn encode_follow(follow: Follow) -> generated::Follow {
    let Follow { channel, number, stated_s } = follow;
    generated::Follow { channel: channel.to_string(), number, stated_s }
}

pub(super) fn decode_follow(follow: generated::Follow) -> Result<Follow, DecodeError> {
    let generated::Follow { channel, number, stated_s } = follow;
    Ok(Follow { channel: decode_channel(&channel)?, number, stated_s })
}

pub(super) fn encode_report(report: Report) -> generated::Report {
    let reason =
        |text: Option<String>| text.map_or_else(String::new, |text| cut(&text, REASON_BYTES_MAX).into());
    let Progress {
        fetched_permille,
        down_bytes_per_s,
        up_bytes_per_s,
        from_seeder_bytes,
        from_peers_bytes,
        sent_bytes,
    } = report.progress;
    generated::Report {
        step: report.order.step,
        beat: report.order.beat,
        host: cut(&report.host, NAME_BYTES_MAX).into(),
        groups: report.groups.into_iter().take(GROUPS_MAX).collect(),
        rack: report.rack.to_string(),
        channel: report.channel.to_string(),
        release: report.release,
        attempt: report.attempt,
        image: report.image.map_or_else(Vec::new, |image| image.digest().to_vec()),
        stage: encode_stage(report.stage).into(),
        fetched_permille: fetched_permille.into(),
        down_bytes_per_s,
        up_bytes_per_s,
        from_seeder_bytes,
        from_peers_bytes,
        sent_bytes,
        waits: reason(report.waits),
        error: reason(report.error),
    }
}

pub(super) fn decode_report(report: generated::Report) -> Result<Report, DecodeError> {
    at_most("a machine's name", report.host.len(), NAME_BYTES_MAX)?;
    at_most("a list of groups", report.groups.len(), GROUPS_MAX)?;
    for group in &report.groups {
        at_most("a group's name", group.len(), NAME_BYTES_MAX)?;
    }
    let reason = |text: String| {
        at_most("a reason", text.len(), REASON_BYTES_MAX)?;
        Ok::<_, DecodeError>(Some(text).filter(|text| !text.is_empty()))
    };
    let stage = decode_stage(report.stage())?;
    let fetched = report.fetched_permille.min(PERMILLE);
    Ok(Report {
        order: Order { step: report.step, beat: report.beat },
        rack: decode_rack(&report.rack)?,
        channel: decode_channel(&report.channel)?,
        release: report.release,
        attempt: report.attempt,
        image: match report.image.as_slice() {
            [] => None,
            digest => Some(decode_digest("an image id", digest)?),
        },
        stage,
        progress: Progress {
            fetched_permille: u16::try_from(fetched).expect("at most a thousand"),
            down_bytes_per_s: report.down_bytes_per_s,
            up_bytes_per_s: report.up_bytes_per_s,
            from_seeder_bytes: report.from_seeder_bytes,
            from_peers_bytes: report.from_peers_bytes,
            sent_bytes: report.sent_bytes,
        },
        waits: reason(report.waits)?,
        error: reason(report.error)?,
        host: report.host,
        groups: report.groups.into_iter().collect(),
    })
}

pub(super) fn encode_orders(orders: Orders) -> generated::Orders {
    generated::Orders {
        channel: orders.channel.to_string(),
        permit: orders.permit.map(|permit| encode_signed(&permit)),
        hold: orders.hold,
        report_in_s: orders.report_in_s,
    }
}

pub(super) fn decode_orders(orders: generated::Orders) -> Result<Orders, DecodeError> {
    Ok(Orders {
        channel: decode_channel(&orders.channel)?,
        permit: orders.permit.map(decode_signed).transpose()?,
        hold: orders.hold,
        report_in_s: orders.report_in_s,
    })
}

fn decode_channel(text: &str) -> Result<Channel, DecodeError> {
    text.parse().map_err(|_| DecodeError::Field { field: "a channel", why: "see Channel".into() })
}

fn encode_stage(stage: Stage) -> generated::Stage {
    match stage {
        Stage::Idle => generated::Stage::Idle,
        Stage::Fetching => generated::Stage::Fetching,
        Stage::Staged => generated::Stage::Staged,
        Stage::Applying => generated::Stage::Applying,
        Stage::Confirming => generated::Stage::Confirming,
        Stage::Confirmed => generated::Stage::Confirmed,
        Stage::RollingBack => generated::Stage::RollingBack,
        Stage::RolledBack => generated::Stage::RolledBack,
        Stage::Failed => generated::Stage::Failed,
    }
}

fn decode_stage(stage: generated::Stage) -> Result<Stage, DecodeError> {
    Ok(match stage {
        generated::Stage::Unspecified => {
            return Err(DecodeError::Field { field: "a report", why: "it gives no known stage".into() });
        }
        generated::Stage::Idle => Stage::Idle,
        generated::Stage::Fetching => Stage::Fetching,
        generated::Stage::Staged => Stage::Staged,
        generated::Stage::Applying => Stage::Applying,
        generated::Stage::Confirming => Stage::Confirming,
        generated::Stage::Confirmed => Stage::Confirmed,
        generated::Stage::RollingBack => Stage::RollingBack,
        generated::Stage::RolledBack => Stage::RolledBack,
        generated::Stage::Failed => Stage::Failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cid::Cid;
    use crate::release::Permit;
    use crate::signing::{SIGNATURE_BYTES, Signed};
    use crate::wire::Frame;
    use prost::Message as _;

    fn report(stage: Stage) -> Report {
        Report {
            order: Order { step: 3, beat: 4 },
            host: "node07".into(),
            groups: ["web", "eu"].map(str::to_owned).into(),
            rack: "row1/r7".parse().unwrap(),
            channel: "stable".parse().unwrap(),
            release: 5,
            attempt: 1,
            image: Some(Cid::of(b"image")),
            stage,
            progress: Progress { fetched_permille: 1000, down_bytes_per_s: 1, ..Progress::default() },
            waits: Some("piece 812: only held by node07".into()),
            error: None,
        }
    }

    #[test]
    fn frames_of_a_fleet_come_back_as_they_went() {
        let channel: Channel = "stable".parse().unwrap();
        let permit = Signed::<Permit>::from_parts(vec![1; 9], vec![2; SIGNATURE_BYTES]);
        let orders = Orders { channel: channel.clone(), permit: Some(permit), hold: false, report_in_s: 30 };
        let mut frames = vec![
            Frame::Follow(Follow { channel, number: 7, stated_s: 9 }),
            Frame::Release(Signed::from_parts(vec![1; 9], vec![2; SIGNATURE_BYTES])),
            Frame::Orders(Orders { permit: None, hold: true, ..orders.clone() }),
            Frame::Orders(orders),
        ];
        frames.extend(Stage::ALL.map(|stage| Frame::Report(Box::new(report(stage)))));
        for frame in frames {
            assert_eq!(Frame::decode(&frame.clone().encode()).unwrap(), frame);
        }
    }

    #[test]
    fn what_is_too_long_is_cut_before_it_goes_and_refused_when_it_comes() {
        let long = Report { host: "h".repeat(99), waits: Some("w".repeat(999)), ..report(Stage::Idle) };
        let sent = decode_report(encode_report(long)).unwrap();
        assert_eq!((sent.host.len(), sent.waits.unwrap().len()), (NAME_BYTES_MAX, REASON_BYTES_MAX));
        let good = encode_report(report(Stage::Idle));
        assert!(good.encoded_len() < 250, "{} bytes", good.encoded_len());
        let bad = [
            generated::Report { host: "h".repeat(65), ..good.clone() },
            generated::Report { groups: vec!["g".into(); 9], ..good.clone() },
            generated::Report { groups: vec!["g".repeat(65)], ..good.clone() },
            generated::Report { error: "e".repeat(257), ..good.clone() },
            generated::Report { image: vec![0; 31], ..good.clone() },
            generated::Report { stage: 0, ..good.clone() },
            generated::Report { rack: "a//b".into(), ..good.clone() },
            generated::Report { channel: String::new(), ..good },
        ];
        for report in bad {
            assert!(decode_report(report.clone()).is_err(), "{report:?}");
        }
    }
}
