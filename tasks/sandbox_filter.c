#include "tasks/sandbox_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#define ARCHITECTURE 0u
#endif

/* Linux 5.17; numbers from 424 on are the same on all processors. */
enum { FIRST_UNKNOWN = 450 };

/* Calls that are refused with EPERM, whatever their arguments. */
static const uint16_t refused[] = {
#ifdef __x86_64__ /* the others never had these */
    __NR_fork,
    __NR_vfork,
    __NR_creat,
    __NR_mkdir,
    __NR_rmdir,
    __NR_unlink,
    __NR_rename,
    __NR_link,
    __NR_symlink,
    __NR_mknod,
    __NR_chmod,
    __NR_chown,
    __NR_lchown,
    __NR_utime,
    __NR_utimes,
    __NR_futimesat,
    __NR_iopl,
    __NR_ioperm,
    __NR_modify_ldt,
#endif
    /* files */
    __NR_mkdirat,
    __NR_unlinkat,
    __NR_renameat,
    __NR_renameat2,
    __NR_linkat,
    __NR_symlinkat,
    __NR_mknodat,
    __NR_fchmod,
    __NR_fchmodat,
    __NR_fchown,
    __NR_fchownat,
    __NR_truncate,
    __NR_utimensat,
    __NR_setxattr,
    __NR_lsetxattr,
    __NR_fsetxattr,
    __NR_removexattr,
    __NR_lremovexattr,
    __NR_fremovexattr,
    __NR_open_by_handle_at,
    __NR_mount,
    __NR_umount2,
    __NR_pivot_root,
    __NR_chroot,
    __NR_swapon,
    __NR_swapoff,
    __NR_quotactl,
    __NR_acct,
    __NR_open_tree,
    __NR_move_mount,
    __NR_fsopen,
    __NR_fsconfig,
    __NR_fsmount,
    __NR_fspick,
    __NR_mount_setattr,
    __NR_fanotify_init,
    /* processes, signals and limits */
    __NR_tkill,
    __NR_rt_sigqueueinfo,
    __NR_rt_tgsigqueueinfo,
    __NR_pidfd_open,
    __NR_pidfd_send_signal,
    __NR_pidfd_getfd,
    __NR_ptrace,
    __NR_process_vm_readv,
    __NR_process_vm_writev,
    __NR_process_madvise,
    __NR_kcmp,
    __NR_setsid,
    __NR_setpgid,
    __NR_setrlimit,
    __NR_unshare,
    __NR_setns,
    /* network, and memory that outlives the process */
    __NR_socket,
    __NR_shmget,
    __NR_shmat,
    __NR_msgget,
    __NR_semget,
    __NR_mq_open,
    __NR_mq_unlink,
    __NR_io_uring_setup,
    __NR_io_setup,
    /* the kernel */
    __NR_bpf,
    __NR_perf_event_open,
    __NR_userfaultfd,
    __NR_add_key,
    __NR_request_key,
    __NR_keyctl,
    __NR_reboot,
    __NR_kexec_load,
    __NR_init_module,
    __NR_finit_module,
    __NR_delete_module,
    __NR_sethostname,
    __NR_setdomainname,
    __NR_settimeofday,
    __NR_clock_settime,
    __NR_adjtimex,
    __NR_clock_adjtime,
    __NR_syslog,
    __NR_vhangup,
    __NR_memfd_secret,
};

static void emit(dms_filter *f, struct sock_filter instruction)
{
    if (f->n < DMS_FILTER_MOST)
        f->code[f->n++] = instruction;
}

static void load(dms_filter *f, size_t offset)
{
    emit(f, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset));
}

/* The low or high half of argument i; both processors are little-endian. */
static size_t argument(int i, int half)
{
    return offsetof(struct seccomp_data, args) + 8 * (size_t)i + 4 * (size_t)half;
}

static void finish(dms_filter *f, uint32_t verdict)
{
    emit(f, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, verdict));
}

static void refuse(dms_filter *f, long call, int error)
{
    emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, 1));
    finish(f, SECCOMP_RET_ERRNO | (uint32_t)error);
}

/* Of this call: `test` of argument i with `value` decides between `yes` and `no`. */
typedef struct {
    int argument;
    uint16_t test; /* BPF_JEQ or BPF_JSET */
    uint32_t value;
    uint32_t yes, no;
} condition;

/* Returns the place of `value`. */
static unsigned short decide(dms_filter *f, long call, condition c)
{
    emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, 4));
    load(f, argument(c.argument, 0));
    const unsigned short at = f->n;
    emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | c.test | BPF_K, c.value, 0, 1));
    finish(f, c.yes);
    finish(f, c.no);
    return at;
}

/* Conditions end the filter for their call, so that the call's number is in hand after each. */
static void add_conditions(dms_filter *f)
{
    const uint32_t allow = SECCOMP_RET_ALLOW, eperm = SECCOMP_RET_ERRNO | EPERM,
                   eacces = SECCOMP_RET_ERRNO | EACCES,
                   writes = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND;
#ifdef __NR_open
    decide(f, __NR_open, (condition){1, BPF_JSET, writes, eacces, allow});
#endif
    decide(f, __NR_openat, (condition){2, BPF_JSET, writes, eacces, allow});
    decide(f, __NR_clone, (condition){0, BPF_JSET, CLONE_THREAD, allow, eperm});
    /* Bits 32 and up of the command are not looked at by the kernel either. */
    decide(f, __NR_ioctl, (condition){1, BPF_JEQ, TIOCSTI, eperm, allow});
    f->pids[f->n_pids++] = decide(f, __NR_kill, (condition){0, BPF_JEQ, 0, allow, eperm});
    f->pids[f->n_pids++] = decide(f, __NR_tgkill, (condition){0, BPF_JEQ, 0, allow, eperm});
    /* prlimit that asks only: no new limit, all 64 bits of the pointer 0. */
    emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_prlimit64, 0, 6));
    load(f, argument(2, 0));
    emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3));
    load(f, argument(2, 1));
    emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1));
    finish(f, allow);
    finish(f, eperm);
}

bool dms_filter_build(dms_filter *f)
{
    f->n = 0;
    f->n_pids = 0;
    load(f, offsetof(struct seccomp_data, arch));
    emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0));
    finish(f, SECCOMP_RET_KILL_PROCESS);
    load(f, offsetof(struct seccomp_data, nr));
    /* What came after this list was written, and the x32 calls, whose numbers are larger still: a C
     * library knows how to do without. */
    emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FIRST_UNKNOWN, 0, 1));
    finish(f, SECCOMP_RET_ERRNO | ENOSYS);
    for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
        refuse(f, refused[i], EPERM);
    /* Their arguments lie in memory, where a filter cannot see them. */
    refuse(f, __NR_clone3, ENOSYS);
    refuse(f, __NR_openat2, ENOSYS);
    add_conditions(f);
    finish(f, SECCOMP_RET_ALLOW);
    return ARCHITECTURE != 0 && f->n < DMS_FILTER_MOST;
}

bool dms_filter_apply(dms_filter *f)
{
    struct sock_fprog program = {.len = f->n, .filter = f->code};
    for (int i = 0; i < f->n_pids; i++)
        f->code[f->pids[i]].k = (uint32_t)getpid();
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}
