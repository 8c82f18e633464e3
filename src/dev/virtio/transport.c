/*
 * virtio over PCI (VIRTIO 1.2 §4.1 "Virtio Over PCI Bus"): one memory BAR with a page each for the common configuration,
 * the interrupt status, the device's configuration and the notifications; MSI-X in another; capabilities that say so,
 * among them the window through configuration space (§4.1.4.9) for drivers that cannot reach BARs.
 * Not modelled: legacy (transitional) devices, notification data, queue reset, shared memory.
 */
#include "dev/virtio/virtio.h"

#include <linux/virtio_pci.h>
#include <string.h>

/* --- registers --- */

enum {
    REGISTER_BAR = 4, MSIX_BAR = 1,
    COMMON_OFFSET = 0x0000, ISR_OFFSET = 0x1000, DEVICE_OFFSET = 0x2000, NOTIFY_OFFSET = 0x3000, PAGE = 0x1000,
    REGISTERS_SIZE = 0x4000,
    COMMON_SIZE = 0x38, NOTIFY_MULTIPLIER = 4,
    ISR_QUEUE = 1, ISR_CONFIG = 2,
    VENDOR = 0x1AF4, DEVICE_FIRST = 0x1040, SUBSYSTEM = 0x1100, REVISION = 1,
    BATCH = 64,                 /* buffers handled under one register access */
    PROMPT = 64,                /* see wait_for_more */
};

static const uint64_t common_features = BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_ACCESS_PLATFORM) | BIT(VIRTIO_F_RING_PACKED) |
                                        BIT(VIRTIO_RING_F_INDIRECT_DESC) | BIT(VIRTIO_RING_F_EVENT_IDX);

/* --- interrupts --- */

static void interrupt(struct virtio *virtio, uint16_t vector, uint8_t isr)
{
    if (pci_msix_enabled(&virtio->pci)) {
        if (vector != VIRTIO_NO_VECTOR)
            pci_msix_send(&virtio->pci, vector);
        return;
    }
    virtio->isr |= isr;
    pci_intx(&virtio->pci, true);
}

void virtio_interrupt_queue(struct virtio_queue *queue) { interrupt(queue->virtio, queue->vector, ISR_QUEUE); }

void virtio_config_changed(struct virtio *virtio)
{
    virtio->generation++;
    if (virtio->status & VIRTIO_CONFIG_S_DRIVER_OK)
        interrupt(virtio, virtio->config_vector, ISR_CONFIG);
}

/* §2.1.2 "Device Requirements: Device Status Field": say so once, then wait for the reset. */
void virtio_break(struct virtio *virtio, const char *why)
{
    if (virtio->status & VIRTIO_CONFIG_S_NEEDS_RESET)
        return;
    guest_error(virtio->pci.device.world.log, "%s: %s", virtio->pci.device.name, why);
    virtio->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    virtio_config_changed(virtio);
}

/* --- running queues --- */

static void postpone(struct virtio_queue *queue)
{
    struct virtio *virtio = queue->virtio;
    virtio->postponed |= 1u << queue->index;
    if (virtio->pci.device.world.loop)
        loop_post(virtio->pci.device.world.loop, &virtio->work);
}

/*
 * While we work the driver need not notify. Before we stop we ask for notifications again, and look once more, because a
 * buffer may have come in between. Rounds are counted, not buffers: another processor may make one come and go for ever.
 * Returns how many buffers were taken.
 */
static unsigned run_queue(struct virtio_queue *queue)
{
    struct virtio *virtio = queue->virtio;
    unsigned took = 0;
    virtio_queue_want_notify(queue, false);
    if (virtio->ops->begin)
        virtio->ops->begin(virtio);
    for (unsigned rounds = 0; virtio_queue_live(queue); rounds++) {
        if (rounds == BATCH) {
            postpone(queue);
            break;
        }
        enum virtio_progress progress = virtio->ops->handle(virtio, queue);
        took += progress == VIRTIO_TOOK;
        if (progress == VIRTIO_STALLED)
            break;
        if (progress == VIRTIO_EMPTY) {
            virtio_queue_want_notify(queue, true);
            if (virtio_queue_empty(queue))
                break;
        }
    }
    if (virtio->ops->end)
        virtio->ops->end(virtio);
    virtio_queue_signal(queue);
    return took;
}

void virtio_run_queue(struct virtio_queue *queue) { run_queue(queue); }

void virtio_queue_be_prompt(struct virtio_queue *queue) { queue->prompt = PROMPT; }

/*
 * A guest whose requests are answered before it can make the next one gets an interrupt for each, which costs it far more than the
 * request. So where requests come in crowds they are let come together, until the processor has nothing else to do or LOOP_LAZY_NS are over; the
 * driver need not notify meanwhile, and one interrupt answers them all. Where that was of no use the next PROMPT notifications are obeyed at once: no
 * second request came, and the guest went to sleep and woke again for one; or it found other things to do, and got its answer late.
 * With a counted clock all are: when a timer of the host's ends is not to be seen there.
 */
static bool wait_for_more(struct virtio_queue *queue)
{
    struct virtio *virtio = queue->virtio;
    const struct device_world *world = &virtio->pci.device.world;
    if (!virtio->ops->patient || !virtio_queue_live(queue) || !world->loop || clock_counted(world->clock))
        return false;
    if (queue->prompt) {
        queue->prompt--;
        return false;
    }
    virtio_queue_want_notify(queue, false);
    virtio->postponed |= 1u << queue->index;
    if (!virtio->waits_since)
        virtio->waits_since = clock_ns(world->clock);
    loop_post_lazily(world->loop, &virtio->work);
    return true;
}

static void run_postponed(void *owner)
{
    struct virtio *virtio = owner;
    pthread_mutex_t *lock = virtio->pci.device.world.lock;
    if (lock)
        pthread_mutex_lock(lock);
    uint32_t queues = virtio->postponed;
    bool late = virtio->waits_since && clock_ns(virtio->pci.device.world.clock) - virtio->waits_since >= LOOP_LAZY_NS;
    virtio->postponed = 0;
    virtio->waits_since = 0;
    for (unsigned i = 0; i < virtio->ops->queues; i++)
        if (queues & 1u << i && (run_queue(&virtio->queue[i]) < 2 || late))
            virtio_queue_be_prompt(&virtio->queue[i]);
    if (lock)
        pthread_mutex_unlock(lock);
}

/* --- status, features, queue set-up --- */

static void reset_queue(struct virtio_queue *queue)
{
    *queue = (struct virtio_queue){ .virtio = queue->virtio, .index = queue->index, .size = VIRTIO_QUEUE_SIZE,
                                    .vector = VIRTIO_NO_VECTOR, .avail_wrap = true, .used_wrap = true, .prompt = PROMPT };
}

/* What the driver resets by writing 0 to the status; the PCI function stays as it is. */
static void reset_virtio(struct virtio *virtio)
{
    if (virtio->ops->stop)
        virtio->ops->stop(virtio);
    virtio->features = 0;
    virtio->device_feature_select = virtio->driver_feature_select = 0;
    virtio->config_vector = VIRTIO_NO_VECTOR;
    virtio->queue_select = 0;
    virtio->status = virtio->isr = 0;
    virtio->postponed = 0;
    virtio->waits_since = 0;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        reset_queue(&virtio->queue[i]);
    pci_intx(&virtio->pci, false);
}

static bool features_acceptable(const struct virtio *virtio)
{
    return !(virtio->features & ~virtio->offered) && virtio_has(virtio, VIRTIO_F_VERSION_1);
}

static void write_status(struct virtio *virtio, uint8_t value)
{
    uint8_t old = virtio->status;
    trace(virtio->pci.device.world.log, virtio, "%s: status %#x -> %#x, features %#lx", virtio->pci.device.name, old, value,
          (unsigned long)virtio->features);
    if (!value) {
        reset_virtio(virtio);
        return;
    }
    /* §2.1.1: bits go by a reset only, else features could change under rings that are in use. */
    uint8_t new = value | (old & (VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK));
    if (new & ~old & VIRTIO_CONFIG_S_FEATURES_OK && !features_acceptable(virtio))
        new &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
    /* §3.1.1 "Driver Requirements: Device Initialization": no rings before the features are agreed. */
    if (!(new & VIRTIO_CONFIG_S_FEATURES_OK))
        new &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
    virtio->status = new;
    if (new & ~old & VIRTIO_CONFIG_S_DRIVER_OK && virtio->ops->start)
        virtio->ops->start(virtio);
}

static void write_driver_feature(struct virtio *virtio, uint32_t value)
{
    if (virtio->status & VIRTIO_CONFIG_S_FEATURES_OK || virtio->driver_feature_select > 1)
        return;
    unsigned shift = 32 * virtio->driver_feature_select;
    virtio->features = (virtio->features & ~(0xFFFFFFFFull << shift)) | (uint64_t)value << shift;
}

static uint32_t read_feature(uint64_t features, uint32_t select)
{
    return select > 1 ? 0 : (uint32_t)(features >> (32 * select));
}

static uint16_t checked_vector(const struct virtio *virtio, uint64_t vector)
{
    return vector < virtio->pci.msix.count ? (uint16_t)vector : VIRTIO_NO_VECTOR;
}

static void write_queue_size(struct virtio_queue *queue, uint64_t size)
{
    bool packed = virtio_has(queue->virtio, VIRTIO_F_RING_PACKED);
    if (size && size <= VIRTIO_QUEUE_SIZE && (packed || !(size & (size - 1))))
        queue->size = (uint16_t)size;
    else
        guest_error(queue->virtio->pci.device.world.log, "%s: a queue of %lu is not possible", queue->virtio->pci.device.name,
                    (unsigned long)size);
}

/* §2.7.2, §2.8.10.1: alignments that the driver owes us. */
static void enable_queue(struct virtio_queue *queue)
{
    bool packed = virtio_has(queue->virtio, VIRTIO_F_RING_PACKED);
    if (queue->desc % 16 || queue->driver % (packed ? 4 : 2) || queue->device % 4)
        virtio_break(queue->virtio, "a ring is not aligned");
    else
        queue->enabled = true;
}

/* --- common configuration (§4.1.4.3) --- */

static uint64_t read_queue_register(struct virtio_queue *queue, unsigned offset)
{
    switch (offset) {
    case VIRTIO_PCI_COMMON_Q_SIZE: return queue->size;
    case VIRTIO_PCI_COMMON_Q_MSIX: return queue->vector;
    case VIRTIO_PCI_COMMON_Q_ENABLE: return queue->enabled;
    case VIRTIO_PCI_COMMON_Q_NOFF: return queue->index;
    case VIRTIO_PCI_COMMON_Q_DESCLO: return (uint32_t)queue->desc;
    case VIRTIO_PCI_COMMON_Q_DESCHI: return queue->desc >> 32;
    case VIRTIO_PCI_COMMON_Q_AVAILLO: return (uint32_t)queue->driver;
    case VIRTIO_PCI_COMMON_Q_AVAILHI: return queue->driver >> 32;
    case VIRTIO_PCI_COMMON_Q_USEDLO: return (uint32_t)queue->device;
    case VIRTIO_PCI_COMMON_Q_USEDHI: return queue->device >> 32;
    default: return 0;
    }
}

static struct virtio_queue *selected_queue(struct virtio *virtio)
{
    return virtio->queue_select < virtio->ops->queues ? &virtio->queue[virtio->queue_select] : NULL;
}

static uint64_t read_common(struct virtio *virtio, unsigned offset)
{
    struct virtio_queue *queue = selected_queue(virtio);
    switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT: return virtio->device_feature_select;
    case VIRTIO_PCI_COMMON_DF: return read_feature(virtio->offered, virtio->device_feature_select);
    case VIRTIO_PCI_COMMON_GFSELECT: return virtio->driver_feature_select;
    case VIRTIO_PCI_COMMON_GF: return read_feature(virtio->features, virtio->driver_feature_select);
    case VIRTIO_PCI_COMMON_MSIX: return virtio->config_vector;
    case VIRTIO_PCI_COMMON_NUMQ: return virtio->ops->queues;
    case VIRTIO_PCI_COMMON_STATUS: return virtio->status;
    case VIRTIO_PCI_COMMON_CFGGENERATION: return virtio->generation;
    case VIRTIO_PCI_COMMON_Q_SELECT: return virtio->queue_select;
    default: return queue ? read_queue_register(queue, offset) : 0;
    }
}

static void set_low(uint64_t *address, uint64_t value) { *address = (*address & ~0xFFFFFFFFull) | (uint32_t)value; }
static void set_high(uint64_t *address, uint64_t value) { *address = (uint32_t)*address | value << 32; }

static void write_queue_register(struct virtio_queue *queue, unsigned offset, uint64_t value)
{
    if (offset == VIRTIO_PCI_COMMON_Q_MSIX) {
        queue->vector = checked_vector(queue->virtio, value);
        return;
    }
    if (queue->enabled)
        return;                 /* the places of a live ring do not move */
    switch (offset) {
    case VIRTIO_PCI_COMMON_Q_SIZE: write_queue_size(queue, value); break;
    case VIRTIO_PCI_COMMON_Q_DESCLO: set_low(&queue->desc, value); break;
    case VIRTIO_PCI_COMMON_Q_DESCHI: set_high(&queue->desc, value); break;
    case VIRTIO_PCI_COMMON_Q_AVAILLO: set_low(&queue->driver, value); break;
    case VIRTIO_PCI_COMMON_Q_AVAILHI: set_high(&queue->driver, value); break;
    case VIRTIO_PCI_COMMON_Q_USEDLO: set_low(&queue->device, value); break;
    case VIRTIO_PCI_COMMON_Q_USEDHI: set_high(&queue->device, value); break;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
        if (value == 1)
            enable_queue(queue);
        break;
    }
}

static void write_common(struct virtio *virtio, unsigned offset, uint64_t value)
{
    struct virtio_queue *queue = selected_queue(virtio);
    switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT: virtio->device_feature_select = (uint32_t)value; break;
    case VIRTIO_PCI_COMMON_GFSELECT: virtio->driver_feature_select = (uint32_t)value; break;
    case VIRTIO_PCI_COMMON_GF: write_driver_feature(virtio, (uint32_t)value); break;
    case VIRTIO_PCI_COMMON_MSIX: virtio->config_vector = checked_vector(virtio, value); break;
    case VIRTIO_PCI_COMMON_STATUS: write_status(virtio, (uint8_t)value); break;
    case VIRTIO_PCI_COMMON_Q_SELECT: virtio->queue_select = (uint16_t)value; break;
    default:
        if (queue)
            write_queue_register(queue, offset, value);
        break;
    }
}

/* --- the other pages --- */

/* §4.1.4.5: reading clears it and lowers the line. */
static uint8_t read_isr(struct virtio *virtio)
{
    uint8_t value = virtio->isr;
    virtio->isr = 0;
    pci_intx(&virtio->pci, false);
    return value;
}

static void device_config_access(struct virtio *virtio, unsigned offset, struct access *access)
{
    bool inside = offset + access->size <= virtio->ops->config_size;
    if (!access->write) {
        access->value = 0;
        if (inside)
            memcpy(&access->value, virtio->config + offset, access->size);
    } else if (inside && virtio->ops->config_written) {
        memcpy(virtio->config + offset, &access->value, access->size);
        virtio->ops->config_written(virtio, offset, access->size);
    }
}

static void notify(struct virtio *virtio, unsigned offset)
{
    unsigned index = offset / NOTIFY_MULTIPLIER;
    if (index < virtio->ops->queues && !wait_for_more(&virtio->queue[index]))
        virtio_run_queue(&virtio->queue[index]);
}

static enum access_result register_access(void *owner, struct access *access)
{
    struct virtio *virtio = owner;
    unsigned page = (unsigned)access->address & ~(PAGE - 1u), offset = (unsigned)access->address & (PAGE - 1u);
    if (page == DEVICE_OFFSET) {
        device_config_access(virtio, offset, access);
    } else if (access->write) {
        if (page == COMMON_OFFSET)
            write_common(virtio, offset, access->value);
        else if (page == NOTIFY_OFFSET)
            notify(virtio, offset);
    } else {
        access->value = page == COMMON_OFFSET                ? read_common(virtio, offset)
                        : page == ISR_OFFSET && offset == 0 ? read_isr(virtio)
                                                            : 0;
        access->value &= size_mask(access->size);
    }
    return ACCESS_OK;
}

/* --- the window through configuration space (§4.1.4.9) --- */

static void window_access(struct pci_function *function, bool write)
{
    struct virtio *virtio = (struct virtio *)function;
    uint8_t *data = &function->config[virtio->config_access + sizeof(struct virtio_pci_cap)];
    uint8_t bar = function->config[virtio->config_access + VIRTIO_PCI_CAP_BAR];
    uint32_t offset = pci_get(function->config, virtio->config_access + VIRTIO_PCI_CAP_OFFSET, 4);
    uint32_t length = pci_get(function->config, virtio->config_access + VIRTIO_PCI_CAP_LENGTH, 4);
    if (bar != REGISTER_BAR || (length != 1 && length != 2 && length != 4) || offset % length || offset >= REGISTERS_SIZE)
        return;
    struct access access = { .address = offset, .size = (uint8_t)length, .write = write, .requester = REQUESTER_CPU };
    memcpy(&access.value, data, length);
    register_access(virtio, &access);
    if (!write)
        memcpy(data, &access.value, length);
}

static bool touches_window(struct pci_function *function, unsigned offset, unsigned size)
{
    unsigned data = ((struct virtio *)function)->config_access + (unsigned)sizeof(struct virtio_pci_cap);
    return offset < data + 4 && data < offset + size;
}

static void config_reading(struct pci_function *function, unsigned offset, unsigned size)
{
    if (touches_window(function, offset, size))
        window_access(function, false);
}

static void config_written(struct pci_function *function, unsigned offset, unsigned size)
{
    if (touches_window(function, offset, size))
        window_access(function, true);
}

/* --- capabilities, init --- */

static uint16_t add_capability(struct virtio *virtio, uint8_t type, uint32_t offset, uint32_t length, uint8_t extra)
{
    struct pci_function *function = &virtio->pci;
    uint8_t size = (uint8_t)(sizeof(struct virtio_pci_cap) + extra);
    uint16_t at = pci_add_capability(function, PCI_CAP_ID_VNDR, size);
    function->config[at + VIRTIO_PCI_CAP_LEN] = size;
    function->config[at + VIRTIO_PCI_CAP_CFG_TYPE] = type;
    function->config[at + VIRTIO_PCI_CAP_BAR] = REGISTER_BAR;
    pci_set(function->config, at + VIRTIO_PCI_CAP_OFFSET, 4, offset);
    pci_set(function->config, at + VIRTIO_PCI_CAP_LENGTH, 4, length);
    return at;
}

static void add_capabilities(struct virtio *virtio)
{
    struct pci_function *function = &virtio->pci;
    add_capability(virtio, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_OFFSET, COMMON_SIZE, 0);
    add_capability(virtio, VIRTIO_PCI_CAP_ISR_CFG, ISR_OFFSET, 1, 0);
    if (virtio->ops->config_size)
        add_capability(virtio, VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_OFFSET, virtio->ops->config_size, 0);
    uint16_t at = add_capability(virtio, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_OFFSET, virtio->ops->queues * NOTIFY_MULTIPLIER, 4);
    pci_set(function->config, at + VIRTIO_PCI_NOTIFY_CAP_MULT, 4, NOTIFY_MULTIPLIER);
    at = add_capability(virtio, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 4);
    virtio->config_access = at;
    function->config[at + VIRTIO_PCI_CAP_BAR] = 0;
    function->write_mask[at + VIRTIO_PCI_CAP_BAR] = 0xFF;
    memset(&function->write_mask[at + VIRTIO_PCI_CAP_OFFSET], 0xFF, 12);
    function->config_reading = config_reading;
    function->config_written = config_written;
}

bool virtio_init(struct virtio *virtio, const struct virtio_ops *ops, struct error *err)
{
    const struct pci_identity identity = { VENDOR, (uint16_t)(DEVICE_FIRST + ops->id), VENDOR, SUBSYSTEM, ops->class_code,
                                           REVISION };
    assert(ops->queues <= VIRTIO_QUEUES_MAX && ops->config_size <= VIRTIO_CONFIG_MAX);
    virtio->ops = ops;
    virtio->offered = (ops->features | common_features) & ~virtio->features_off;
    if (!pci_function_init(&virtio->pci, &identity, err))
        return false;
    pci_add_msix(&virtio->pci, MSIX_BAR, ops->queues + 1);
    pci_bar_init(&virtio->pci, REGISTER_BAR, virtio->pci.device.name, REGISTERS_SIZE, true, false, register_access, virtio);
    virtio->pci.bar[REGISTER_BAR].region.access_max = 4;
    add_capabilities(virtio);
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        virtio->queue[i].virtio = virtio;
        virtio->queue[i].index = (uint16_t)i;
    }
    virtio->work = (struct loop_work){ .run = run_postponed, .owner = virtio };
    return true;
}

void virtio_reset(struct virtio *virtio)
{
    reset_virtio(virtio);
    virtio->generation = 0;
    pci_function_reset(&virtio->pci);
}

/* What the guest agreed with the device that it had must hold for this one, whose backend may be of another kind. */
bool virtio_accepts(struct device *device, struct error *err)
{
    const struct virtio *virtio = (const struct virtio *)device;
    uint64_t missing = virtio->features & ~virtio->offered;
    if (!missing || !(virtio->status & VIRTIO_CONFIG_S_FEATURES_OK))
        return true;
    return error_set(err, "the guest uses features of %s that it does not have here (bits %#llx): its backend must be of the same kind, with "
                     "the same abilities, as the one that it had", device->name, (unsigned long long)missing);
}

/* A loaded state is a guest's work too: what no guest could have set is put right, and queues go on. */
void virtio_resume(struct virtio *virtio)
{
    pci_function_resume(&virtio->pci);
    for (unsigned i = 0; i < virtio->ops->queues; i++) {
        struct virtio_queue *queue = &virtio->queue[i];
        bool packed = virtio_has(virtio, VIRTIO_F_RING_PACKED);
        if (!queue->size || queue->size > VIRTIO_QUEUE_SIZE || (!packed && queue->size & (queue->size - 1)))
            queue->size = VIRTIO_QUEUE_SIZE;
        if (packed && (queue->avail_next >= queue->size || queue->used_next >= queue->size))
            queue->avail_next = queue->used_next = 0;
        if (virtio_queue_live(queue))
            postpone(queue);
    }
}

void virtio_fini(struct virtio *virtio)
{
    reset_virtio(virtio);
    if (virtio->pci.device.world.loop)
        loop_cancel(virtio->pci.device.world.loop, &virtio->work);
    pci_function_fini(&virtio->pci);
}

/* --- state --- */

static const struct state_field queue_fields[] = {
    STATE_SCALAR(struct virtio_queue, size),
    STATE_SCALAR(struct virtio_queue, vector),
    STATE_SCALAR(struct virtio_queue, enabled),
    STATE_SCALAR(struct virtio_queue, desc),
    STATE_SCALAR(struct virtio_queue, driver),
    STATE_SCALAR(struct virtio_queue, device),
    STATE_SCALAR(struct virtio_queue, avail_next),
    STATE_SCALAR(struct virtio_queue, used_next),
    STATE_SCALAR(struct virtio_queue, avail_wrap),
    STATE_SCALAR(struct virtio_queue, used_wrap),
    STATE_SCALAR(struct virtio_queue, in_flight),
    STATE_SCALAR(struct virtio_queue, unsignalled),
};
static const struct state_list queue_state = STATE_LIST("virtio_queue", 1, queue_fields);

static const struct state_field virtio_fields[] = {
    STATE_NESTED(struct virtio, pci, pci_function_state),
    STATE_SCALAR(struct virtio, features),
    STATE_SCALAR(struct virtio, device_feature_select),
    STATE_SCALAR(struct virtio, driver_feature_select),
    STATE_SCALAR(struct virtio, config_vector),
    STATE_SCALAR(struct virtio, queue_select),
    STATE_SCALAR(struct virtio, status),
    STATE_SCALAR(struct virtio, isr),
    STATE_SCALAR(struct virtio, generation),
    STATE_BLOB(struct virtio, config),
    STATE_NESTED_ARRAY(struct virtio, queue, queue_state),
};
const struct state_list virtio_state = STATE_LIST("virtio", 1, virtio_fields);
