//! Runs on: apply core.
//!
//! Alarms inside an entry: listed, raised, and disarmed.

use engine::Mvcc;
use proto::{etcdserverpb as pb, etcdserverpb::alarm_request::AlarmAction};

use super::{table, touch::resident};
use crate::{
    error::Error,
    quota,
    shared::{Alarm, Alarms, RaisedBy, alarms_of},
};

/// Does what `request` asks for, and returns the alarms that its answer shows. An action or an alarm that does not
/// exist changes nothing.
///
/// **Errors** there are too many alarms; nothing was changed then.
pub fn apply(
    alarms: &mut Alarms,
    mvcc: &mut Mvcc,
    request: &pb::AlarmRequest,
    raised_by: RaisedBy,
) -> Result<Vec<(u64, i32)>, Error> {
    let alarm = (request.member_id, request.alarm);
    let key = table::alarm_key(request.member_id, request.alarm);
    match AlarmAction::try_from(request.action) {
        Ok(AlarmAction::Get) => Ok(alarms_of(alarms, request.alarm)),
        Ok(AlarmAction::Activate) if request.alarm != Alarm::None as i32 => {
            if alarms.len() >= quota::ALARMS_MAX && !alarms.contains_key(&alarm) {
                return Err(Error::TooManyRequests);
            }
            // If a client raises an alarm that a quota has raised, the alarm becomes the client's.
            let before = alarms.get(&alarm).copied();
            if before.is_none() || (before, raised_by) == (Some(RaisedBy::Quota), RaisedBy::Hand) {
                alarms.insert(alarm, raised_by);
                let mut write = mvcc.begin();
                resident(write.meta_put(&key, table::encode_raised_by(raised_by)));
                drop(write.finish());
            }
            Ok(vec![alarm])
        }
        Ok(AlarmAction::Deactivate) if alarms.remove(&alarm).is_some() => {
            let mut write = mvcc.begin();
            resident(write.meta_delete(&key));
            drop(write.finish());
            Ok(vec![alarm])
        }
        Ok(AlarmAction::Activate | AlarmAction::Deactivate) | Err(_) => Ok(Vec::new()),
    }
}
