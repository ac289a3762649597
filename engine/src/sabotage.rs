//! Ways to break the engine on purpose, to show that the simulation's net is fine-meshed.
//!
//! Test builds only: elsewhere [`POSSIBLE`] is false and every check of it is compiled away.

/// Can this build be broken?
pub const POSSIBLE: bool = cfg!(any(test, feature = "sabotage"));

/// One deliberate fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A claim on a held driver is granted.
    GrantTwice,
    /// Cars are exchanged although their drivers are to be asked.
    NobodyAsked,
    /// A release is obeyed whatever hold it names.
    ReleaseAnyHold,
    /// An ended ride keeps its driver.
    DropRelease,
    /// A grant nobody wants is not answered.
    KeepUnwantedGrant,
    /// A grant is believed although the ride has moved on.
    BelieveAnyGrant,
    /// An attempt's number is used again.
    ReuseAttempt,
    /// A ride event's number is skipped.
    SkipSequence,
    /// An accept is obeyed after the ride was cancelled.
    AssignAfterCancel,
    /// The rider's shard is not told of the end.
    ForgetToFreeRider,
    /// A rider may have two rides.
    TwoRidesAtOnce,
    /// Idempotency keys are not looked at.
    ForgetKeys,
    /// Old requests are dispatched.
    IgnoreAge,
    /// Old sessions are obeyed.
    OldSessions,
    /// A held driver goes offline without a word to the ride.
    OfflineWhileHeld,
    /// A claim without an answer is waited for for ever.
    NoClaimTimer,
    /// A driver who declined is asked again.
    AskAgain,
    /// A message may hop past one that went through the log.
    HopAlways,
    /// A hop moves the receiver's time.
    HopMovesTime,
    /// A repeated command id is handled as if it were new.
    ForgetOutcomes,
    /// A changed driver is not marked for saving.
    ForgetToSave,
    /// State changes without an event.
    SilentChange,
    /// A rider's word counts for another rider's ride.
    ObeyStrangers,
    /// A ride that is over gets another destination.
    LeadTheEnded,
    /// The answer's clock runs from the offer, not from its receipt.
    NoHandshake,
    /// The search has no bound.
    WidenForEver,
    /// A driver is claimed for a class the car does not serve.
    AnyClass,
    /// A retry while the wish is pending is answered at once.
    AnswerPending,
    /// A suspended driver is held.
    SuspendedGrants,
    /// A suspended driver goes online.
    SuspendedOnline,
    /// The block list is not looked at.
    IgnoreBlocks,
    /// A suspended driver is forgotten like any other.
    ForgetMarks,
    /// A transfer moves the driver whatever hold it names as the old one.
    TransferAnyHold,
    /// A leaving driver is moved to another ride.
    LeavingMoves,
    /// A ride with two holds keeps both.
    KeepBoth,
    /// The hold a refused transfer leaves behind is not given back.
    KeepStrayHold,
    /// Arrival and start do not wait for the answer to a transfer.
    ReportInTransfer,
    /// Reports that waited are never answered.
    ForgetParked,
    /// A car whose rider is in it already is not brought back.
    NeverBringBack,
    /// The transfer that brings a car back uses the old attempt again.
    ReuseCounterAttempt,
    /// The second hold is kept by a ride that has ended.
    KeepIncoming,
    /// A ride changes its driver as often as rounds like.
    SwapForEver,
    /// A driver who took a ride has the place at the airport again.
    KeepPlace,
    /// A driver who asks again for the place they have gets another one.
    PlaceAnew,
    /// Who comes last is put before all others.
    JumpQueue,
    /// A new shard makes people up who may be on their way to it.
    CreateUnasked,
    /// A shard that has given its people away makes them up again.
    GiveUnmarked,
    /// A shard gives its people away before the others send to their new one.
    GiveEarly,
    /// Commands that waited for people are forgotten when they come.
    ForgetWaiting,
    /// Commands that waited for people are handled twice when they come.
    HandleWaitingTwice,
    /// Once the ring has grown, people's commands are answered twice.
    AnswerTwiceOnceGrown,
    /// People whom a new shard has never heard of begin with small numbers.
    BeginSmall,
    /// Messages hop while people move.
    HopWhileMoving,
    /// A new shard goes on sending its people's commands by the old one after it has asked for them.
    AskAndSend,
}
