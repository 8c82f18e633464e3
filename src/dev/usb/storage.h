/*
 * A USB disk: Bulk-Only Transport (USB Mass Storage Class, Bulk-Only Transport 1.0) of SCSI commands (SPC-3, SBC-2) to an image. Board lock held.
 */
#ifndef DOPPEL_DEV_USB_STORAGE_H
#define DOPPEL_DEV_USB_STORAGE_H

#include "backend/block.h"
#include "state/state.h"

enum { USB_STORAGE_BUFFER = 65536 };

/* What a bulk endpoint says to the host. */
enum usb_answer { USB_MOVED, USB_NOT_NOW, USB_REFUSED };

struct usb_storage {
    /* --- configuration --- */
    struct block *block;
    const char *serial;         /* NULL: none */
    void (*ready)(void *owner); /* something that was not possible now may be so by now */
    void *owner;
    /* --- state --- */
    uint8_t phase;
    uint32_t tag, left;         /* of the command; data that the host still expects to move */
    uint8_t status, sense, sense_code;
    bool cache_told;            /* the guest has read that there is a cache: it flushes by itself */
    uint64_t offset;            /* in the image, of what is next */
    uint32_t todo;              /* bytes of the image that are still to be moved, from or to the buffer */
    uint32_t filled, taken;     /* bytes in the buffer; of those, gone to the host */
    uint8_t buffer[USB_STORAGE_BUFFER];
    /* --- not state: what is under way; nothing is while the state is saved --- */
    bool busy;
    struct block_request request;
    struct iovec iov;
};
extern const struct state_list usb_storage_state;

void usb_storage_reset(struct usb_storage *storage);
/* Waits for what is under way. */
void usb_storage_quiesce(struct usb_storage *storage);
/* After its state was loaded. */
void usb_storage_resume(struct usb_storage *storage);
/* Data from the host. *size: what is offered; then, what was taken. */
enum usb_answer usb_storage_out(struct usb_storage *storage, const uint8_t *data, uint32_t *size);
/* Data to the host. *size: room for it; then, what was given. *ends: there is no more of this for now. */
enum usb_answer usb_storage_in(struct usb_storage *storage, uint8_t *data, uint32_t *size, bool *ends);

#endif
