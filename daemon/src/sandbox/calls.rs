//! System calls that a recorder never makes once it has started, refused by seccomp.
//!
//! The list names what is refused, not what is allowed: a new libc brings new calls, and a recorder
//! that stops because its libc was upgraded does more harm than a harmless call. The unit's own
//! filter (`SystemCallFilter=@system-service`), which systemd keeps up to date, allows by list.
//! The kernel remembers which calls are always allowed, so the others cost nothing.
//!
//! Source: seccomp(2), syscalls(2).

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, apply_filter_all_threads,
};

/// Refused whatever their arguments.
const NEVER: &[c_long] = &[
    // Programs, and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // Another user.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    // Another view of the machine.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Whose files they are; nodes of devices.
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_mknodat,
    // The machine itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_settimeofday,
    libc::SYS_adjtimex,
    // What attacks on the kernel begin with.
    libc::SYS_personality,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];
/// Sockets that sources, answers and services have.
const FAMILIES: [libc::c_int; 6] =
    [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_XDP];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Refuses them from now on, in every thread.
///
/// # Errors
/// The kernel takes no filter, or a thread has one of its own.
pub(super) fn forbid(xdp: bool) -> Result<(), Error> {
    apply_filter_all_threads(&refused(rules(xdp)?, libc::EPERM)?)?;
    // Its flags are in memory, where no filter looks. A libc that is told that there is no such
    // call makes threads by `clone`.
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    apply_filter_all_threads(&refused(clone3, libc::ENOSYS)?)
}

fn refused(rules: Rules, errno: libc::c_int) -> Result<BpfProgram, Error> {
    let refusal = SeccompAction::Errno(errno.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch)?.try_into()?)
}

fn rules(xdp: bool) -> Result<Rules, BackendError> {
    let mut rules: Rules = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    if !xdp {
        rules.insert(libc::SYS_bpf, Vec::new());
    }
    let flags = |argument, mask: libc::c_int, value: libc::c_int| {
        let bits = SeccompCmpOp::MaskedEq(mask as u64);
        SeccompRule::new(vec![condition(argument, bits, value)?])
    };
    // A process; threads have this flag.
    rules.insert(libc::SYS_clone, vec![flags(0, libc::CLONE_THREAD, 0)?]);
    // Memory that is written and then run.
    let both = libc::PROT_WRITE | libc::PROT_EXEC;
    rules.insert(libc::SYS_mmap, vec![flags(2, both, both)?]);
    let run = vec![flags(2, libc::PROT_EXEC, libc::PROT_EXEC)?];
    rules.insert(libc::SYS_mprotect, run.clone());
    rules.insert(libc::SYS_pkey_mprotect, run);
    // Keys typed into the terminal that it was started from.
    let typed = condition(1, SeccompCmpOp::Eq, libc::TIOCSTI as libc::c_int)?;
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![typed])?]);
    let other = FAMILIES.iter().map(|family| condition(0, SeccompCmpOp::Ne, *family));
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(other.collect::<Result<_, _>>()?)?]);
    Ok(rules)
}

fn condition(
    argument: u8,
    compare: SeccompCmpOp,
    value: libc::c_int,
) -> Result<SeccompCondition, BackendError> {
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_becomes_a_program_and_names_nothing_twice() {
        for xdp in [false, true] {
            let rules = rules(xdp).unwrap();
            assert_eq!(rules.contains_key(&libc::SYS_bpf), !xdp);
            assert!(!refused(rules, libc::EPERM).unwrap().is_empty());
        }
        let mut calls = NEVER.to_vec();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), NEVER.len());
    }
}
